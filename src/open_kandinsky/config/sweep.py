"""Several jobs of one command (`-m`): which they are, what is refused before the first one runs, and which was best."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.failures import REFUSED
from open_kandinsky.core.secrets import masked

FAILED = "failed.txt"  # in a sweep's folder: a line for each job that did
SWEEPERS, LAUNCHERS = ("hparams_search", "hydra/sweeper"), ("launcher", "hydra/launcher")


def jobs(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep; of a search, whose jobs nobody knows yet, those of one."""
    if is_search(parsed) or any(o.is_sweep_override() and not o.is_discrete_sweep() for o in parsed):
        yield [f"{o.get_key_element()}={first(o)}" if o.is_sweep_override() else str(o.input_line) for o in parsed]
        return
    for batch in BasicSweeper.split_arguments(list(parsed), max_batch_size=None):
        yield from batch


def first(swept: Override) -> str:
    value: Any = swept.value()
    return str(value.start) if swept.is_interval_sweep() else next(iter(swept.sweep_string_iterator()))


def is_search(parsed: Sequence[Override]) -> bool:
    """Whether a sweeper was chosen that finds the values itself."""
    return any(o.key_or_group in SWEEPERS and o.value() not in ("grid", "basic") for o in parsed)


def refuse_search_without_optuna(parsed: Sequence[Override]) -> None:
    """UserError where a search is chosen and Optuna is not installed."""
    for o in parsed:
        if o.key_or_group == "hparams_search" and o.value() == "optuna" and find_spec("optuna") is None:
            raise UserError(f"{o.input_line}: optuna is not installed: pip install open-kandinsky[cluster]")


def refuse_one_job(parsed: Sequence[Override]) -> None:
    """ValueError where a launcher or a sweeper is chosen for a job that neither would ever see."""
    for o in parsed:
        if o.key_or_group in SWEEPERS + LAUNCHERS and o.value() is not None:
            raise UserError(f"{o.input_line!r} starts jobs of their own: add -m")


def refuse_one_folder(parsed: Sequence[Override]) -> None:
    """ValueError where several jobs would all train in one folder."""
    if not is_search(parsed) and not any(o.is_sweep_override() for o in parsed):
        return
    for o in parsed:
        if o.key_or_group == "run_dir" and not o.is_sweep_override() and "${" not in str(o.input_line):
            raise UserError(
                f"{o.input_line} is one folder for several jobs: leave it out, and each has one of its own, or name it "
                "by the job, as in 'run_dir=runs/prior/${hydra:job.num}'"
            )


def is_sweep() -> bool:
    """Whether Hydra runs this process's job as one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def job_suffix() -> str:
    """The end of a folder's name for a job of a sweep, as in _3; empty where one job runs."""
    if not is_sweep() or OmegaConf.is_missing(HydraConfig.get().job, "num"):
        return ""
    return f"_{HydraConfig.get().job.num}"


@contextmanager
def going_on() -> Iterator[None]:
    """A job of a sweep that a person's mistake ends leaves a note, and the others go on."""
    try:
        yield
    except SystemExit as stop:
        if stop.code != REFUSED or not is_sweep():
            raise
        own = HydraConfig.get()
        with open(Path(own.sweep.dir) / FAILED, "a", encoding="utf-8") as file:
            file.write(f"job {own.job.num} failed: {' '.join(stop.__notes__)}\n")


OmegaConf.register_new_resolver("of_sweep", job_suffix, replace=True)


class JobResult(NamedTuple):
    """The figure, the values and the folder of a job that ended in this process."""

    value: float
    values: str
    folder: str


class SweepReporter(Callback):
    """Prints each job of a sweep, and at the end the best one. conf/hydra/default.yaml names it for Hydra."""

    def __init__(self) -> None:
        self.swept: set[str] = set()
        self.results: list[JobResult] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        self.swept = {o.get_key_element() for o in typed if o.is_sweep_override()}
        (Path(config.hydra.sweep.dir) / FAILED).unlink(missing_ok=True)
        if logs := config.hydra.launcher.get("submitit_folder"):
            print(f"each job in a process of its own; what it prints: {logs}", flush=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        hide(Path(config.hydra.sweep.dir) / "multirun.yaml")
        if config.hydra.mode is RunMode.MULTIRUN:
            print(f"job {HydraConfig.get().job.num}: {self.values(config)}", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if isinstance(value := job_return._return_value, float):
            self.results.append(JobResult(value, self.values(config), str((job_return.cfg or {}).get("run_dir", ""))))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the best job; a search's earlier trials count too. Exit code 2 where jobs failed."""
        hide(Path(config.hydra.sweep.dir) / "multirun.yaml")
        if best := best_trial(config) or self.best(config):
            print(best, flush=True)
        if (failed := Path(config.hydra.sweep.dir) / FAILED).is_file():
            print(failed.read_text(encoding="utf-8"), file=sys.stderr, end="", flush=True)
            raise SystemExit(REFUSED)

    def values(self, config: DictConfig) -> str:
        """What is this job's own of what was typed."""
        typed = list(config.hydra.overrides.task)
        return ", ".join(one for one in typed if one.partition("=")[0] in self.swept) or ", ".join(typed) or "as it is"

    def best(self, config: DictConfig) -> str | None:
        if not self.results:
            return None
        choose = max if config.hydra.sweeper.get("direction") == "maximize" else min
        found = choose(self.results)
        where = f" in {found.folder}" if found.folder else ""
        return f"best of {len(self.results)}: {config.objective} {found.value:.4g} with {found.values}{where}"


def hide(file: Path) -> None:
    """Mask the passwords in a file that Hydra wrote about a sweep."""
    if file.is_file() and (text := file.read_text(encoding="utf-8")) != (hidden := masked(text)):
        files.write(file, hidden)


def best_trial(config: DictConfig) -> str | None:
    """A line about the best trial of a search, which the sweeper wrote to a file; None where no search ran."""
    file = Path(config.hydra.sweep.dir) / "optimization_results.yaml"
    if "study_name" not in config.hydra.sweeper or not file.is_file():
        return None
    found: Any = OmegaConf.load(file)
    values = ", ".join(f"{key}={value}" for key, value in found.best_params.items())
    return f"best trial: {config.objective} {found.best_value:.4g} with {values}; all of them: {config.hydra.sweep.dir}"
