"""Where the verbs meet Hydra: compose a config, refuse one that does not fit before anything is read, write it down."""

import functools
import hashlib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict

from open_kandinsky import command_line, nodes, overrides, sweeps
from open_kandinsky.config import CONF
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.failures import message, told
from open_kandinsky.secrets import hidden, masked_tree

Run = Callable[[DictConfig], Any]


def verb(
    config_name: str, conf: Path = CONF, first: Callable[[DictConfig], None] = lambda cfg: None
) -> Callable[[Run], Callable[[], None]]:
    """Turn `run(cfg)` into a `main()` that reads Hydra's command line (--help, --cfg job and -m included).

    A config that does not fit stops with one message and exit code 2 before `run` starts; `run` is given it resolved,
    after `first` was called with it as it is. What it returns is what a sweep's sweeper is told.
    """

    def decorate(run: Run) -> Callable[[], None]:
        @functools.wraps(run)
        def job(cfg: DictConfig) -> Any:
            with hidden(), sweeps.going_on(), told(config_name):
                first(cfg)
                OmegaConf.resolve(cfg)
                return run(cfg)

        def main() -> None:
            with hidden():
                with told(config_name):
                    args = get_args_parser().parse_args()
                    check_command_line(args, config_name, conf)
                    sys.argv += left_to_search(args, config_name, conf)
                hydra.main(version_base="1.3", config_path=str(conf.absolute()), config_name=config_name)(job)()

        return main

    return decorate


def compose(config_name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> DictConfig:
    """The resolved config that the verb `config_name` runs with; ValueError or Hydra's error where it does not fit."""
    with known_to_hydra(checked(config_name, list(overrides), conf.absolute(), complete=True)) as cfg:
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
    return cfg


@contextmanager
def known_to_hydra(cfg: DictConfig) -> Iterator[DictConfig]:
    """Meanwhile ${hydra:...} is what the config says."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        yield cfg
    finally:
        HydraConfig.instance().cfg = before


def digest(text: str) -> str:
    """A folder's name for a job: short, the same for the same overrides, and another for others."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


OmegaConf.register_new_resolver("digest", digest, replace=True)  # ${digest:${hydra:job.override_dirname}}
OmegaConf.register_new_resolver("is_null", lambda value: value is None, replace=True)  # ${is_null:${init}}


def save(cfg: DictConfig, path: str | Path) -> None:
    """Write the resolved config to `path`, without passwords: whole or not at all. OSError names the file."""
    files.write(path, OmegaConf.to_yaml(OmegaConf.create(record(cfg))))


def record(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as it is kept and logged: without the passwords of addresses."""
    return masked_tree(plain(cfg, resolve=True))


def check_command_line(args: Namespace, config_name: str, conf: Path) -> None:
    """Refuse a command line whose config does not fit; each job of a sweep is checked before the first one runs."""
    if args.hydra_help or args.shell_completion or args.info or args.experimental_rerun:
        return
    typed = command_line.parse(args.overrides)
    (sweeps.refuse_one_folder if args.multirun else sweeps.refuse_one_job)(typed)
    also = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    folder = Path(args.config_path or conf).absolute()
    for job in sweeps.jobs(typed) if args.multirun else [args.overrides]:
        checked(args.config_name or config_name, [*also, *job], folder, complete=not (args.help or args.cfg))


def left_to_search(args: Namespace, config_name: str, conf: Path) -> list[str]:
    """Overrides with which a search that was stopped runs what is left of it; none where there is no such search."""
    parsed = command_line.parse(args.overrides)
    if not args.multirun or not sweeps.is_search(parsed):
        return []
    typed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    with (
        initialized(conf.absolute(), args.config_name or config_name),
        known_to_hydra(hydra.compose(config_name, typed, return_hydra_config=True)) as cfg,
    ):
        sweeper = cfg.hydra.sweeper
        if not sweeper.get("storage"):
            return []
        left, seen = sweeps.to_go(sweeper.study_name, sweeper.storage, sweeper.n_trials)
        seed = sweeper.sampler.get("seed")
    again = [] if seed is None else [f"hydra.sweeper.sampler.seed={seed + seen}"]  # not the draws of before once more
    return [f"hydra.sweeper.n_trials={left}", *again]


def checked(config_name: str, typed: list[str], conf: Path, complete: bool) -> DictConfig:
    """The composed config, Hydra's part included, once all that was typed and every node of it fits.

    `complete` says whether a value that was never given (???) is refused too.
    """
    with initialized(conf, config_name):
        parsed = command_line.parse(typed)
        command_line.refuse_sweeps(parsed)
        folders = [conf, *command_line.search_folders(parsed)]
        choices = [o for o in parsed if command_line.is_choice(o, folders)]
        command_line.refuse_unknown_options(choices, folders)

        base = with_choices(config_name, choices)
        values = [o for o in parsed if o not in choices]
        for o in values:
            if not o.is_add() and not o.is_force_add():
                overrides.refuse_unknown_key(command_line.dotted(o), str(o.input_line), base, overrides.groups(folders))
        cfg = hydra.compose(config_name, typed, return_hydra_config=True)

    tree = plain(cfg)
    for o in values:
        overrides.refuse_stray_key(command_line.dotted(o), base, tree)
    if complete:
        overrides.refuse_missing(tree, config_name, conf)
    nodes.refuse_misfits(tree)
    return cfg


@contextmanager
def initialized(conf: Path, config_name: str) -> Iterator[None]:
    """Hydra, ready to compose from `conf`: also inside of a verb that Hydra itself has started."""
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(conf), job_name=config_name, version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def plain(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """The config as dicts and lists, without Hydra's own part."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    tree = OmegaConf.to_container(own, resolve=resolve)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def with_choices(config_name: str, choices: Sequence[Override]) -> dict[str, Any]:
    """The config with the options that were picked; ValueError where one is picked for a place that has none."""
    try:
        base = plain(hydra.compose(config_name, [str(o.input_line) for o in choices]))
    except ConfigCompositionException as error:
        told = (
            command_line.uninstalled(error)
            or command_line.misplaced(config_name, choices)
            or command_line.unknown_to_hydra(config_name, choices)
        )
        raise UserError(told or message(error)) from error
    added = [o for o in choices if o.is_add()]
    if added:
        placed = plain(hydra.compose(config_name, [str(o.input_line) for o in choices if not o.is_add()]))
        if set(base) - set(placed):
            raise UserError(f"{config_name} has no place for {added[0].input_line!r}")
    return base
