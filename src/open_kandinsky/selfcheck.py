"""Whether published pictures score here as published; `make eval-selfcheck` is this.

open-kandinsky selfcheck coco=data/coco
open-kandinsky selfcheck checks='[weights,cats,cmmd]' device=cuda

Needs a network, for some GB of weights and a few pictures; what is at hand already is not fetched again. GigaGAN's
pictures are put into place by hand. Exit code 0 where all that was asked for ran and agrees, 1 where something differs
or was not run, 2 where nothing could be.
"""

import sys
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.evaluation.reproduce import checks as report
from open_kandinsky.evaluation.reproduce.checks import Check, run


def selfcheck(cfg: DictConfig) -> bool:
    """Print the table and write selfcheck.json to cfg.to; returns whether all of it ran and agrees.

    ValueError for a check that there is not, and where there is no network and nothing to check without.
    """
    checks = asked(cfg)
    lines = [report.header(checks)]

    def told(result):
        lines.append(report.line(result, checks))
        print(*lines, sep="\n", flush=True)
        lines.clear()

    results = run(checks, seen=told)
    path, about = Path(cfg.to) / report.FILE, report.found(results)
    before = ", in place of an earlier one" if path.exists() else ""
    report.write(path, about)
    print(report.summary(results, about), f"written: {path}{before}", sep="\n")
    return report.passed(results)


def asked(cfg: DictConfig) -> list[Check]:
    """A name may stand for several checks. As plain lists: OmegaConf would take our dataclasses for configs."""
    if not cfg.checks:
        raise UserError(f"checks=[]: nothing to check; there are {', '.join(cfg.known)}")
    for name in cfg.checks:
        lookup("checks", name, cfg.known)
    return [check for name in cfg.checks for check in instantiate(cfg.known[name], _convert_="all")]


@compose.command("selfcheck")
def main(cfg: DictConfig) -> None:
    sys.exit(0 if selfcheck(cfg) else 1)


if __name__ == "__main__":
    main()
