"""Where the verbs meet Hydra: compose a config, refuse one that does not fit before anything is read, write it down."""

import functools
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict

from open_kandinsky import atomic, nodes, overrides
from open_kandinsky.failures import message, told

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1] / "conf"  # a wheel's, or a checkout's

Run = Callable[[DictConfig], None]


def verb(config_name: str, conf: Path = CONF) -> Callable[[Run], Callable[[], None]]:
    """Turn `run(cfg)` into a `main()` that reads Hydra's command line (--help, --cfg job and -m included).

    A config that does not fit stops with one message and exit code 2 before `run` starts; `run` is given it resolved.
    """

    def decorate(run: Run) -> Callable[[], None]:
        @functools.wraps(run)
        def job(cfg: DictConfig) -> None:
            with told(config_name):
                OmegaConf.resolve(cfg)
                run(cfg)

        def main() -> None:
            with told(config_name):
                check_command_line(get_args_parser().parse_args(), config_name, conf)
            hydra.main(version_base="1.3", config_path=str(conf.absolute()), config_name=config_name)(job)()

        return main

    return decorate


def compose(config_name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> DictConfig:
    """The resolved config that the verb `config_name` runs with; ValueError or Hydra's error where it does not fit."""
    cfg = checked(config_name, list(overrides), conf.absolute(), complete=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
    finally:
        HydraConfig.instance().cfg = before
    return cfg


def save(cfg: DictConfig, path: str | Path) -> None:
    """Write the resolved config to `path`: whole or not at all. OSError names the file."""
    atomic.write(path, OmegaConf.to_yaml(OmegaConf.create(plain(cfg, resolve=True))))


def refuse_foreign_targets(cfg: DictConfig | Mapping[str, Any]) -> None:
    """ValueError where a config out of somebody's weights folder asks for more than stages, networks and their like.

    Give it the part that is about to be instantiated, before it is.
    """
    nodes.refuse_foreign(plain(OmegaConf.create(dict(cfg)), resolve=True))


def check_command_line(args: Namespace, config_name: str, conf: Path) -> None:
    """Refuse a command line whose config does not fit; each job of a sweep is checked before the first one runs."""
    if args.hydra_help or args.shell_completion or args.info or args.experimental_rerun:
        return
    also = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    folder = Path(args.config_path or conf).absolute()
    for job in jobs(args.overrides) if args.multirun else [args.overrides]:
        checked(args.config_name or config_name, [*also, *job], folder, complete=not (args.help or args.cfg))


def jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep over listed values; a search over ranges is left to its sweeper."""
    parsed = parse(overrides)
    if all(o.is_discrete_sweep() for o in parsed if o.is_sweep_override()):
        for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
            yield from batch


def checked(config_name: str, typed: list[str], conf: Path, complete: bool) -> DictConfig:
    """The composed config, Hydra's part included, once all that was typed and every node of it fits.

    `complete` says whether a value that was never given (???) is refused too.
    """
    with initialized(conf, config_name):
        parsed = parse(typed)
        refuse_sweeps(parsed)
        folders = [conf, *search_folders(parsed)]
        choices = [o for o in parsed if is_choice(o, folders)]
        refuse_unknown_options(choices, folders)

        base = with_choices(config_name, choices)
        values = [o for o in parsed if o not in choices]
        for o in values:
            if not o.is_add() and not o.is_force_add():
                overrides.refuse_unknown_key(dotted(o), str(o.input_line), base, overrides.groups(folders))
        cfg = hydra.compose(config_name, typed, return_hydra_config=True)

    tree = plain(cfg)
    for o in values:
        overrides.refuse_stray_key(dotted(o), base, tree)
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


def parse(typed: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(typed))


def refuse_sweeps(parsed: Sequence[Override]) -> None:
    for o in parsed:
        if o.is_sweep_override():
            raise ValueError(f"{o.input_line!r} gives several values: add -m to run each, or quote the value")


def dotted(override: Override) -> str:
    return override.key_or_group.replace("[", ".").replace("]", "")


def search_folders(parsed: Sequence[Override]) -> list[Path]:
    """Config folders that the command line adds to ours."""
    added: list[Any] = [o.value() for o in parsed if o.key_or_group == "hydra.searchpath"]
    return [Path(str(folder).removeprefix("file://")) for folders in added for folder in folders]


def is_choice(override: Override, folders: Sequence[Path]) -> bool:
    """Whether an override picks an option of a group and sets no value; what is Hydra's own counts as picked."""
    name = override.key_or_group
    is_group = any((folder / name).is_dir() for folder in folders)
    return "/" in name or name.startswith("hydra.") or (is_group and not isinstance(override.value(), dict))


def refuse_unknown_options(choices: Sequence[Override], folders: Sequence[Path]) -> None:
    for o in choices:
        if not o.key_or_group.startswith("hydra") and not o.is_delete():
            for option in picked(o):
                overrides.refuse_unknown_option(o.key_or_group, option, folders, o.package or "")


def picked(choice: Override) -> list[str]:
    value: Any = choice.value()
    return [str(option) for option in (value if isinstance(value, list) else [value]) if option is not None]


def with_choices(config_name: str, choices: Sequence[Override]) -> dict[str, Any]:
    """The config with the options that were picked; ValueError where one is picked for a place that has none."""
    try:
        base = hydra.compose(config_name, [str(o.input_line) for o in choices])
    except ConfigCompositionException as error:
        raise ValueError(misplaced(config_name, choices) or message(error)) from error
    placed = plain(hydra.compose(config_name, [str(o.input_line) for o in choices if not o.is_add()]))
    for o in choices:
        if o.is_add() and set(plain(base)) - set(placed):
            raise ValueError(f"{config_name} has no place for {o.input_line!r}")
    return plain(base)


def misplaced(config_name: str, choices: Sequence[Override]) -> str | None:
    known = hydra.compose(config_name, return_hydra_config=True).hydra.runtime.choices
    for o in choices:
        wanted = [overrides.chosen_as(o.key_or_group, option, known) for option in picked(o)]
        if o.package is None and o.key_or_group not in known and wanted and wanted[0]:
            return f"{o.input_line!r} has no place in {config_name}; did you mean {wanted[0]!r}?"
    return None
