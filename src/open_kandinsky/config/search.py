"""A search for a command's best values by Optuna: `train -m hparams_search=optuna KEY=interval(0,1)`.

The study is kept in a file. A search that was stopped goes on with it: trials that have ended are not run again, and a
trial that was killed is the next one, with its values, so that its training goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from open_kandinsky.core.errors import UserError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

RESULTS = "optimization_results.yaml"  # in a sweep's folder: the best trial
AGAIN = "again"  # a trial's attribute: the number of the killed trial whose values it has

Launch = Callable[..., Sequence[JobReturn]]  # Hydra's launcher: several lists of overrides, and the first job's number


class Search(NamedTuple):
    """The settings of a search, as conf/hparams_search/optuna.yaml has them."""

    study_name: str
    storage: str  # a database's address as SQLAlchemy writes it
    direction: Literal["minimize", "maximize"]
    n_trials: int  # in all, those of before the search was stopped included
    n_jobs: int  # trials at once
    max_failure_rate: float  # of the trials at once; where more fail, the search stops
    seed: int
    sampler: Callable[..., Any]  # makes one of optuna.samplers from a seed
    params: Mapping[str, Any]  # values to search, beside those of the command line

    def run(self, arguments: Sequence[str], launch: Launch, folder: Path) -> None:
        """Run the trials that are left, and write the best one of all to `folder`. UserError where too many fail."""
        from optuna.trial import TrialState

        space, fixed = split([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        study, left = self.study()
        first = 0
        while first < left:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, left - first))]
            jobs = [[*(f"{key}={value}" for key, value in trial.params.items()), *fixed] for trial in trials]
            results = launch(jobs, initial_job_idx=first)
            failed = sum(not tell(study, trial, result) for trial, result in zip(trials, results, strict=True))
            first += len(trials)
            if failed / len(trials) > self.max_failure_rate:
                told = f"{failed} of {len(trials)} trials failed"
                raise UserError(f"{told}, more than hydra.sweeper.max_failure_rate={self.max_failure_rate} allows")
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found = {"name": "optuna", "best_params": study.best_params, "best_value": study.best_value}
            OmegaConf.save(OmegaConf.create(found), folder / RESULTS)

    def study(self) -> tuple[Study, int]:
        """The study, its killed trials queued again, and how many trials are left to run.

        One process searches at a time: a trial that is under way is taken for a killed one. The folder of an SQLite
        file is made. UserError for a file that another version of Optuna wrote.
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        Path(self.storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            study = optuna.create_study(
                study_name=self.study_name, storage=self.storage, direction=self.direction, load_if_exists=True
            )
        except RuntimeError as error:
            if "table schema" not in str(error):
                raise
            told = f"{self.storage} is a study of an older Optuna; bring it up to date"
            raise UserError(f"{told}: optuna storage upgrade --storage {self.storage}") from error
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        trials = study.get_trials()
        study.sampler = self.sampler(seed=self.seed + len(trials))  # one that goes on does not draw the same once more
        return study, max(self.n_trials - ended(trials), 0)


def ended(trials: Iterable[FrozenTrial]) -> int:
    """How many trials have ended by themselves, and not by being killed."""
    trials = list(trials)
    killed = {trial.user_attrs.get(AGAIN) for trial in trials}
    return sum(trial.state.is_finished() and bool(trial.params) and trial.number not in killed for trial in trials)


def tell(study: Study, trial: Trial, result: JobReturn) -> bool:
    """Tell the study a trial's value; False where the job failed or gave none, as a training that diverged does."""
    from optuna.trial import TrialState

    value = result._return_value  # `return_value` raises what ended the job
    if result.status is JobStatus.COMPLETED and isinstance(value, (int, float)) and not math.isnan(value):
        study.tell(trial, float(value))
        return True
    study.tell(trial, state=TrialState.FAIL)
    if isinstance(value, BaseException):
        print(f"trial {trial.number} failed: {type(value).__name__}: {value}", file=sys.stderr, flush=True)
    return False


def split(typed: Sequence[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """The distribution of each key that has several values, and the overrides of the others."""
    parsed = OverridesParser.create().parse_overrides(list(typed))
    space = {o.get_key_element(): distribution(o) for o in parsed if o.is_sweep_override()}
    return space, [str(o.input_line) for o in parsed if not o.is_sweep_override()]


def distribution(override: Override) -> BaseDistribution:
    """Hydra's interval, range, choice or list as Optuna's distribution; integers stay integers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        return kind(low, high, log="log" in value.tags)  # pyright: ignore[reportArgumentType]
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers: Any = list(value.range())
        kind = IntDistribution if all(isinstance(number, int) for number in numbers) else FloatDistribution
        return kind(min(numbers), max(numbers), step=abs(value.step))  # pyright: ignore[reportArgumentType]
    if not isinstance(value, (ChoiceSweep, RangeSweep)):
        raise UserError(f"{override.input_line!r}: a search takes an interval, a range, a choice or a list of values")
    choices: Any = override.sweep_iterator(transformer=Transformer.encode)
    return CategoricalDistribution(list(choices))
