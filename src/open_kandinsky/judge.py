"""Let people judge two systems' pictures, side by side and blind.

open-kandinsky generate prompts_file=prompts.txt weights=runs/ours out=out/ours
open-kandinsky generate prompts_file=prompts.txt weights=runs/theirs out=out/theirs
open-kandinsky judge a=out/ours b=out/theirs votes=votes.sqlite
open-kandinsky judge a=out/ours b=out/theirs votes=votes.sqlite show=results out=results.json

The page is served to this machine alone. From another one: ssh -L 7861:127.0.0.1:7861 THIS_MACHINE, then the same
address there. Each judge gives a name, has an order of their own, and continues where they stopped. The Kandinsky paper
(section 5) compares systems in this way, on DrawBench's prompts; it does not print its questions. Ours are about
alignment with the text and about fidelity.
"""

from pathlib import Path

from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.comparison import Comparison
from open_kandinsky.evaluation.human.results import headline, results
from open_kandinsky.evaluation.human.server import LOOPBACK, bind
from open_kandinsky.evaluation.human.votes import PicturePair, Votes, read_pairs
from open_kandinsky.evaluation.report import write_json


def judge(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C, or print the results. ValueError for another value of `show`."""
    if cfg.show not in SHOW:
        raise UserError(f"show={cfg.show}: {' or '.join(SHOW)}")
    SHOW[cfg.show](cfg, read_pairs(Path(cfg.a), Path(cfg.b)))


def show_page(cfg: DictConfig, pairs: list[PicturePair]) -> None:
    """Serve the page; print its address, and at the end how many votes there are."""
    if cfg.out is not None:
        raise UserError(f"out={cfg.out} is read with show=results; the page writes to votes={cfg.votes} alone")
    votes = Votes(Path(cfg.votes), pairs)
    with bind(Comparison(pairs, votes, seed=cfg.seed), cfg.port) as server:
        print(f"{len(pairs)} pairs to judge at http://{LOOPBACK}:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\n{cfg.votes}: {len(votes.counted())} votes")
    votes.close()


def show_results(cfg: DictConfig, pairs: list[PicturePair]) -> None:
    """Print the results, and write them to `out` where it is given; an existing file is never overwritten."""
    if not Path(cfg.votes).is_file():
        raise UserError(f"votes={cfg.votes}: no such file; show=page is where votes are cast")
    if cfg.out is not None and Path(cfg.out).exists():
        raise UserError(f"out={cfg.out} exists, and nothing is overwritten: choose another name")
    votes = Votes(Path(cfg.votes), pairs)
    report = {"a": cfg.a, "b": cfg.b, "asked": len(pairs)} | results(votes.counted())
    report["replaced"] = votes.total() - report["votes"]
    votes.close()
    print(headline(report))
    if cfg.out is not None:
        write_json(Path(cfg.out), report)
        print(f"\nwritten: {cfg.out}")


SHOW = {"page": show_page, "results": show_results}


@compose.command("judge")
def main(cfg: DictConfig) -> None:
    judge(cfg)


if __name__ == "__main__":
    main()
