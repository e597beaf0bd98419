"""Several jobs of one command: which they are, and what is left of a search over values that was stopped."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

SWEEPERS, LAUNCHERS = ("sweep", "hydra/sweeper"), ("launcher", "hydra/launcher")


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


def refuse_one_job(parsed: Sequence[Override]) -> None:
    """ValueError where a launcher or a sweeper is chosen for a job that neither would ever see."""
    for o in parsed:
        if o.key_or_group in SWEEPERS + LAUNCHERS and o.value() is not None:
            raise ValueError(f"{o.input_line!r} starts jobs of their own: add -m")


def to_go(name: str, storage: str, trials: int) -> tuple[int, int]:
    """How many of `trials` are left to run, and how many the study has seen; trials that were killed are queued again.

    `storage` is a database's address as SQLAlchemy writes it; the folder of an SQLite file is made. One process
    searches at a time: a trial that is under way is taken for a killed one.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:  # the first time
        return trials, 0
    except AssertionError as error:  # what the optuna that the sweeper needs does with a newer SQLAlchemy
        raise ValueError("sweep=optuna does not work with this SQLAlchemy: pip install 'sqlalchemy<2'") from error
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        queue_again(study, trial)
    seen = study.get_trials()
    return max(trials - len(over(seen)), 0), len(seen)


def queue_again(study: Any, trial: Any) -> None:
    """Its folder is named after its values, so that it goes on from its last checkpoint."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.trial import TrialState

    study.tell(trial.number, state=TrialState.FAIL)
    if trial.params:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.enqueue_trial(trial.params)


def over(trials: Iterable[Any]) -> set[str]:
    """The values of the trials that have ended, by themselves, and are not queued again."""
    waiting = {repr(t.system_attrs["fixed_params"]) for t in trials if t.state.name == "WAITING"}
    return {repr(t.params) for t in trials if t.state.is_finished()} - waiting - {"{}"}
