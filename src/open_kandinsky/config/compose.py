"""How the commands meet Hydra: a config is composed, refused in one message where it does not fit, and written down.

A mistake is found before any data is read: an option or a key that does not exist, a value that is missing, several
values where one job runs.
"""

import functools
import hashlib
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict

from open_kandinsky.config import CONF, sweep, validate
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.failures import exit_on_user_error, message
from open_kandinsky.core.secrets import hidden, masked_tree


def parse(typed: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(typed))


def refuse_sweeps(parsed: Sequence[Override]) -> None:
    for o in parsed:
        if o.is_sweep_override():
            raise UserError(f"{o.input_line!r} gives several values: add -m to run each, or quote the value")


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
                validate.refuse_unknown_option(o.key_or_group, option, folders, o.package or "")


def picked(choice: Override) -> list[str]:
    value: Any = choice.value()
    return [str(option) for option in (value if isinstance(value, list) else [value]) if option is not None]


def misplaced(config_name: str, choices: Sequence[Override]) -> str | None:
    known = hydra.compose(config_name, return_hydra_config=True).hydra.runtime.choices
    for o in choices:
        wanted = [validate.chosen_as(o.key_or_group, option, known) for option in picked(o)]
        if o.package is None and o.key_or_group not in known and wanted and wanted[0]:
            return f"{o.input_line!r} has no place in {config_name}; did you mean {wanted[0]!r}?"
    return None


def unknown_to_hydra(config_name: str, choices: Sequence[Override]) -> str | None:
    """The key of Hydra's own, as in hydra.launcher.partition, that does not exist, and the nearest that does."""
    groups = [str(o.input_line) for o in choices if not o.key_or_group.startswith("hydra.")]
    own = hydra.compose(config_name, groups, return_hydra_config=True).hydra
    known = list(validate.keys({"hydra": OmegaConf.to_container(own, resolve=False)}))
    wrong = [dotted(o) for o in choices if dotted(o).startswith("hydra.") and not o.is_add() and dotted(o) not in known]
    return f"no such key {wrong[0]!r}" + validate.did_you_mean(validate.nearest_key(wrong[0], known)) if wrong else None


def uninstalled(error: Exception) -> str | None:
    """What to install where an option is a plugin of Hydra's that is not there."""
    plugin = re.search("hydra/launcher'?.*submitit", " ".join(str(error).split()))
    return "launcher: submitit is not installed: pip install open-kandinsky[cluster]" if plugin else None


Run = Callable[[DictConfig], Any]


def command(
    config_name: str, conf: Path = CONF, first: Callable[[DictConfig], None] = lambda cfg: None
) -> Callable[[Run], Callable[[], None]]:
    """Turn `run(cfg)` into a `main()` that reads Hydra's command line (--help, --cfg job and -m included).

    A config that does not fit stops with one message and exit code 2 before `run` starts; `run` is given it resolved,
    after `first` was called with it as it is. What it returns is what a sweep's sweeper is told.
    """

    def decorate(run: Run) -> Callable[[], None]:
        @functools.wraps(run)
        def job(cfg: DictConfig) -> Any:
            with hidden(), sweep.going_on(), exit_on_user_error(config_name):
                first(cfg)
                OmegaConf.resolve(cfg)
                return run(cfg)

        def main() -> None:
            with hidden():
                with exit_on_user_error(config_name):
                    args = get_args_parser().parse_args()
                    check_command_line(args, config_name, conf)
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
    typed = parse(args.overrides)
    sweep.refuse_search_without_optuna(typed)
    (sweep.refuse_one_folder if args.multirun else sweep.refuse_one_job)(typed)
    also = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    folder = Path(args.config_path or conf).absolute()
    for job in sweep.jobs(typed) if args.multirun else [args.overrides]:
        checked(args.config_name or config_name, [*also, *job], folder, complete=not (args.help or args.cfg))


def checked(config_name: str, typed: list[str], conf: Path, complete: bool) -> DictConfig:
    """The composed config, Hydra's part included, once all that was typed and every node of it fits.

    `complete` says whether a value that was never given (???) is refused too.
    """
    with initialized(conf, config_name):
        parsed = parse(typed)
        refuse_sweeps(parsed)
        folders = [conf, *search_folders(parsed)]
        for o in parsed:
            validate.refuse_former(dotted(o), str(o.input_line), folders)
        choices = [o for o in parsed if is_choice(o, folders)]
        refuse_unknown_options(choices, folders)

        base = with_choices(config_name, choices)
        values = [o for o in parsed if o not in choices]
        for o in values:
            if not o.is_add() and not o.is_force_add():
                validate.refuse_unknown_key(dotted(o), str(o.input_line), base, validate.groups(folders))
        cfg = hydra.compose(config_name, typed, return_hydra_config=True)

    tree = plain(cfg)
    for o in values:
        validate.refuse_stray_key(dotted(o), base, tree)
    if complete:
        validate.refuse_missing(tree, config_name, conf)
    validate.refuse_misfits(tree)
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
        mistake = uninstalled(error) or misplaced(config_name, choices) or unknown_to_hydra(config_name, choices)
        raise UserError(mistake or message(error)) from error
    added = [o for o in choices if o.is_add()]
    if added:
        placed = plain(hydra.compose(config_name, [str(o.input_line) for o in choices if not o.is_add()]))
        if set(base) - set(placed):
            raise UserError(f"{config_name} has no place for {added[0].input_line!r}")
    return base
