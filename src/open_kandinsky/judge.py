"""Two systems' pictures judged by people, side by side and blind.

open-kandinsky generate prompts_file=prompts.txt weights=runs/ours out=out/ours
open-kandinsky generate prompts_file=prompts.txt weights=runs/theirs out=out/theirs
open-kandinsky judge a=out/ours b=out/theirs votes=votes.sqlite
open-kandinsky judge a=out/ours b=out/theirs votes=votes.sqlite show=results out=results.json

The page is served to this machine alone. From another one: ssh -L 7861:127.0.0.1:7861 THIS_MACHINE, then the same
address there. Each judge has a name, an order of their own, and goes on where they stopped. The Kandinsky paper
(section 5) compares systems like this, on DrawBench's prompts; it does not print its questions. These are of alignment
with the text and of fidelity.
"""

from pathlib import Path

from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.comparison import Comparison
from open_kandinsky.evaluation.human.results import results, told
from open_kandinsky.evaluation.human.server import LOOPBACK, serving
from open_kandinsky.evaluation.human.votes import PicturePair, Votes, read_pairs
from open_kandinsky.evaluation.report import write_json


def judge(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C, or say what the votes come to. ValueError for a choice that there is not."""
    if cfg.show not in SHOW:
        raise UserError(f"show={cfg.show}: {' or '.join(SHOW)}")
    SHOW[cfg.show](cfg, read_pairs(Path(cfg.a), Path(cfg.b)))


def show_page(cfg: DictConfig, pairs: list[PicturePair]) -> None:
    """Where the page is, and at the end how many votes there are."""
    if cfg.out is not None:
        raise UserError(f"out={cfg.out} is read with show=results; the page writes to votes={cfg.votes} alone")
    votes = Votes(Path(cfg.votes), pairs)
    with serving(Comparison(pairs, votes, seed=cfg.seed), cfg.port) as server:
        print(f"{len(pairs)} pairs to judge at http://{LOOPBACK}:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\n{cfg.votes}: {len(votes.counting())} votes")
    votes.close()


def show_results(cfg: DictConfig, pairs: list[PicturePair]) -> None:
    """Print them, and write them to `out` where one is given; a file that is there is left alone."""
    if not Path(cfg.votes).is_file():
        raise UserError(f"votes={cfg.votes}: no such file; show=page is where votes are cast")
    if cfg.out is not None and Path(cfg.out).exists():
        raise UserError(f"out={cfg.out} exists, and nothing is overwritten: choose another name")
    votes = Votes(Path(cfg.votes), pairs)
    found = {"a": cfg.a, "b": cfg.b, "asked": len(pairs)} | results(votes.counting())
    found["replaced"] = votes.cast_in_all() - found["votes"]
    votes.close()
    print(told(found))
    if cfg.out is not None:
        write_json(Path(cfg.out), found)
        print(f"\nwritten: {cfg.out}")


SHOW = {"page": show_page, "results": show_results}


@compose.command("judge")
def main(cfg: DictConfig) -> None:
    judge(cfg)


if __name__ == "__main__":
    main()
