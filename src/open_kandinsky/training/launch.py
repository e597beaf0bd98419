"""One run, though its processes are started one by one: by Lightning, by torchrun or by SLURM.

What this program needs of SLURM: how its processes were started, and to be started again.

When one of several processes fails: it says why, once, and the others end.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

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


def check_tasks(devices: int | str | Sequence[int], nodes: int) -> None:
    """ValueError where srun has started another number of processes than the trainer has devices on all nodes.

    Each device is one process. `devices` is an int, or a list of which; "auto" is what SLURM gives.
    """
    started = tasks()
    if started is None or isinstance(devices, str):
        return
    a_node = devices if isinstance(devices, int) else len(devices)
    if started != a_node * nodes:
        raise UserError(
            f"SLURM has started {started} task(s), and trainer.devices={a_node} on trainer.num_nodes={nodes} needs "
            f"{a_node * nodes}, one a device: ask for {nodes} node(s) with {a_node} task(s) each "
            "(sbatch --nodes and --ntasks-per-node, and srun before the command; launcher=slurm does so by itself)"
        )


def tasks() -> int | None:
    """How many processes this one is one of; None where srun did not start it, or only gave it a terminal."""
    is_terminal = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    count = os.environ.get("SLURM_NTASKS")
    return None if count is None or is_terminal else int(count)


def job() -> str | None:
    """This job as scontrol names it; None outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
    return number if number and re.fullmatch(r"\d+(_\d+)?", number) else None


def requeue(job: str) -> str:
    """Ask SLURM to start this job again; returns what came of it, for the person who reads the log.

    A job that SLURM does not call running has been cancelled, or is being requeued already: that is left alone. SLURM
    ends this job's processes as soon as it agrees, so this is the last thing to do.
    """
    state = re.search(r"JobState=(\w+)", asked("show", "job", "-o", job)[1])
    if state is None or state[1] != "RUNNING":
        return f"not put back into the queue: SLURM calls job {job} {state[1] if state else 'unknown'}"
    failed, said = asked("requeue", job)
    again = int(os.environ.get("SLURM_RESTART_COUNT", 0)) + 1
    return f"job {job} is not requeued: {said}" if failed else f"job {job} is put back into the queue, restart {again}"


def asked(*arguments: str) -> tuple[int, str]:
    """scontrol's exit code, and what it says."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, " ".join(f"{done.stdout} {done.stderr}".split())


NOTE = ".failed"  # in the run's folder: which process failed first
EVERY = 5.0  # seconds between looks


@contextmanager
def together(trainer: Any, run_dir: Path) -> Iterator[None]:
    """Around what all processes of a training do.

    The first one that fails leaves a note, and its error goes on, after a line that numbers it. All others end with one
    line: by an error of their own (a connection that was closed), or, where they wait for it in a collective, because
    they saw the note.
    """
    if trainer.world_size == 1:
        yield
        return
    # Of this attempt: where processes are started at once, one may be here before the first has tidied up.
    note, over = run_dir / (NOTE + os.environ.get(STARTED, "")), Event()
    if trainer.is_global_zero:
        for earlier in run_dir.glob(f"{NOTE}*"):
            earlier.unlink()
    Thread(target=watch, args=(note, trainer, over), daemon=True).start()
    try:
        yield
    except Exception as error:
        over.set()
        if not first(note, trainer.global_rank):
            leave(trainer, note)
        print(f"process {trainer.global_rank} of {trainer.world_size} failed:", file=sys.stderr, flush=True)
        end_children(trainer)
        raise error
    finally:
        over.set()


def first(note: Path, rank: int) -> bool:
    """Whether no other process has failed before."""
    try:
        with open(note, "x") as file:
            file.write(str(rank))
    except FileExistsError:
        return False
    except OSError:  # a disk that is full may be the very failure
        return True
    return True


def watch(note: Path, trainer: Any, over: Event) -> None:
    """End this process some seconds after another one has failed, if it has not ended by itself."""
    while not over.wait(EVERY):
        if note.exists() and not over.wait(EVERY):
            leave(trainer, note)


def leave(trainer: Any, note: Path) -> None:
    """At once: what waits in a collective cannot be interrupted."""
    told = f"process {trainer.global_rank} of {trainer.world_size} ends: process {note.read_text()} has failed"
    print(told, file=sys.stderr, flush=True)
    end_children(trainer)
    os._exit(1)


def end_children(trainer: Any) -> None:
    """Those that Lightning started from this process."""
    launcher = trainer.strategy.launcher
    if launcher is not None and getattr(launcher, "procs", None):
        launcher.kill(signal.SIGKILL)
