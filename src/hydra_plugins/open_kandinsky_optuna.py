"""The sweeper of `hparams_search=optuna`, here because Hydra takes plugins from the package `hydra_plugins` alone.

Hydra imports this file whenever it starts, so Optuna and what is done with it are imported where a search begins.
"""

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs a command for values that Optuna proposes; `settings` are those of `open_kandinsky.config.search.Search`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from open_kandinsky.config.search import Search
        from open_kandinsky.core.failures import exit_on_user_error

        assert self.config is not None and self.launcher is not None, "Hydra calls setup first"
        with exit_on_user_error(self.config.hydra.job.name):
            Search(**self.settings).run(arguments, self.launcher.launch, Path(self.config.hydra.sweep.dir))
