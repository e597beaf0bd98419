"""One run, though its processes are started one by one: by Lightning, by torchrun or by SLURM."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import TCPStore

from open_kandinsky.core.errors import UserError

# What conf/train.yaml's run_dir reads, where it is set.
STARTED = "OPEN_KANDINSKY_STARTED"  # when the first process was started
RUN_DIR = "OPEN_KANDINSKY_RUN_DIR"  # the folder, as the process that started this one has it
PATIENCE = timedelta(minutes=10)  # until the first process is there

_store: list[TCPStore] = []  # kept for as long as the process lives: torch's own joins it, at the same port


def rank() -> int:
    """This process's number among those of its run, before any of them talks to another."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ and from_outside() is not None:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", 0)) or int(os.environ.get("LOCAL_RANK", 0))


def from_outside() -> ClusterEnvironment | None:
    """Who started several processes at once: torchrun or SLURM, or neither."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            environment = kind()
            return environment if environment.world_size() > 1 else None
    return None


def by_hand(nodes: int) -> ClusterEnvironment | None:
    """Where a person or a script has started a process on each node, or each process. ValueError where one is lost.

    Lightning would wait for half an hour, at an address of this machine. What it starts itself knows its folder.
    """
    if RUN_DIR in os.environ or (nodes < 2 and "LOCAL_RANK" not in os.environ):
        return None
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]:
        raise UserError(
            f"trainer.num_nodes={nodes}: start it by torchrun or SLURM, or by hand on each node with MASTER_ADDR and "
            f"MASTER_PORT of the first and its own NODE_RANK from 0; not set here: {', '.join(missing)}"
        )
    for name in ("MASTER_PORT", "NODE_RANK"):
        if not os.environ[name].isdecimal():
            raise UserError(f"{name}={os.environ[name]}: a whole number")
    return LightningEnvironment()


def agree(nodes: int) -> None:
    """Where processes are started at once, all take the first one's time of start, so that they name one run folder."""
    if STARTED in os.environ or (environment := from_outside() or by_hand(nodes)) is None:
        return
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps the store
    first = rank() == 0
    store = TCPStore(
        environment.main_address,
        environment.main_port,
        is_master=first and not agent,
        timeout=PATIENCE,
        wait_for_workers=False,
        multi_tenant=True,
    )
    _store.append(store)
    key = f"open_kandinsky/started/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if first:
        store.set(key, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    os.environ[STARTED] = store.get(key).decode()


@contextmanager
def known_to_children(run_dir: Path) -> Iterator[None]:
    """Processes that are started meanwhile, by Lightning, take this run folder."""
    before = os.environ.get(RUN_DIR)
    os.environ[RUN_DIR] = str(run_dir.absolute())
    try:
        yield
    finally:
        os.environ.pop(RUN_DIR) if before is None else os.environ.update({RUN_DIR: before})
