"""The processes of one training: they agree on a run folder, are counted and requeued under SLURM, and fail together.

They may be started by Lightning, by torchrun, by SLURM's srun, or by hand on each node.
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

# Environment variables that run_dir in conf/train.yaml reads.
STARTED = "OPEN_KANDINSKY_STARTED"  # when the first process was started
RUN_DIR = "OPEN_KANDINSKY_RUN_DIR"  # the folder of the process that started this one
FIRST_TIMEOUT = timedelta(minutes=10)  # until the first process has started
FAILED = ".failed"  # a file in the run's folder, with the rank that failed first
POLL = 5.0  # seconds

_store: list[TCPStore] = []  # kept as long as the process lives: torch's own store joins it, at the same port


def rank() -> int:
    """This process's number in its run, from environment variables, before torch.distributed is set up."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ and cluster() is not None:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", 0)) or int(os.environ.get("LOCAL_RANK", 0))


def cluster() -> ClusterEnvironment | None:
    """Lightning's environment of torchrun or SLURM, if one of them started several processes at once."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            environment = kind()
            return environment if environment.world_size() > 1 else None
    return None


def started_by_hand(nodes: int) -> ClusterEnvironment | None:
    """Lightning's environment, if a person or a script started this process as one of several.

    UserError if a variable is missing, without which Lightning would wait half an hour at an address of this machine.
    Processes that Lightning itself started have RUN_DIR.
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
    """Give all processes that were started at once the first one's start time, so that they name one run folder."""
    if STARTED in os.environ or (environment := cluster() or started_by_hand(nodes)) is None:
        return
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps the store
    first = rank() == 0
    store = TCPStore(
        environment.main_address,
        environment.main_port,
        is_master=first and not agent,
        timeout=FIRST_TIMEOUT,
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
    """Export the run folder to processes that Lightning starts until the block ends."""
    before = os.environ.get(RUN_DIR)
    os.environ[RUN_DIR] = str(run_dir.absolute())
    try:
        yield
    finally:
        os.environ.pop(RUN_DIR) if before is None else os.environ.update({RUN_DIR: before})


def check_tasks(devices: int | str | Sequence[int], nodes: int) -> None:
    """UserError if srun has started another number of processes than the trainer has devices on all nodes.

    `devices` is a number or a list of device indices; "auto" always fits.
    """
    started = slurm_tasks()
    if started is None or isinstance(devices, str):
        return
    a_node = devices if isinstance(devices, int) else len(devices)
    if started != a_node * nodes:
        raise UserError(
            f"SLURM has started {started} task(s), and trainer.devices={a_node} on trainer.num_nodes={nodes} needs "
            f"{a_node * nodes}, one a device: ask for {nodes} node(s) with {a_node} task(s) each "
            "(sbatch --nodes and --ntasks-per-node, and srun before the command; launcher=slurm does so by itself)"
        )


def slurm_tasks() -> int | None:
    """The number of processes that srun started; None if it started none, or only an interactive terminal."""
    is_terminal = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    count = os.environ.get("SLURM_NTASKS")
    return None if count is None or is_terminal else int(count)


def job() -> str | None:
    """This SLURM job's id, as scontrol takes it; None outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
    return number if number and re.fullmatch(r"\d+(_\d+)?", number) else None


def requeue(job: str) -> str:
    """Have SLURM start this job again; returns a line for the log with the outcome.

    A job that SLURM does not call running has been cancelled, or is being requeued already, and is left alone. SLURM
    ends this job's processes as soon as it agrees, so this must be the last thing that a process does.
    """
    state = re.search(r"JobState=(\w+)", scontrol("show", "job", "-o", job)[1])
    if state is None or state[1] != "RUNNING":
        return f"not put back into the queue: SLURM calls job {job} {state[1] if state else 'unknown'}"
    code, output = scontrol("requeue", job)
    if code:
        return f"job {job} is not requeued: {output}"
    return f"job {job} is put back into the queue, restart {int(os.environ.get('SLURM_RESTART_COUNT', 0)) + 1}"


def scontrol(*arguments: str) -> tuple[int, str]:
    """Its exit code and output."""
    try:
        run = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return run.returncode, " ".join(f"{run.stdout} {run.stderr}".split())


@contextmanager
def failing_together(trainer: Any, run_dir: Path) -> Iterator[None]:
    """When one process fails in the block, its error is raised, after a line with its rank, and all others exit.

    The first one that fails leaves a file in the run's folder. The others exit with one line: on an error of their own
    (a closed connection), or, where they wait in a collective, because a thread of theirs has seen the file.
    """
    if trainer.world_size == 1:
        yield
        return
    # The start time is in the name, since one process may be here before the first has removed an earlier file.
    failed, over = run_dir / (FAILED + os.environ.get(STARTED, "")), Event()
    process = f"process {trainer.global_rank} of {trainer.world_size}"
    if trainer.is_global_zero:
        for earlier in run_dir.glob(f"{FAILED}*"):
            earlier.unlink()

    def exit_after_other() -> None:
        """At once: a process that waits in a collective cannot be interrupted."""
        print(f"{process} ends: process {failed.read_text()} has failed", file=sys.stderr, flush=True)
        kill_children(trainer)
        os._exit(1)

    def watch() -> None:
        while not over.wait(POLL):
            if failed.exists() and not over.wait(POLL):
                exit_after_other()

    Thread(target=watch, daemon=True).start()
    try:
        yield
    except Exception:
        over.set()
        try:
            with open(failed, "x") as file:
                file.write(str(trainer.global_rank))
        except FileExistsError:
            exit_after_other()
        except OSError:  # a full disk may be the very failure
            pass
        print(f"{process} failed:", file=sys.stderr, flush=True)
        kill_children(trainer)
        raise
    finally:
        over.set()


def kill_children(trainer: Any) -> None:
    """The processes that Lightning started from this one."""
    launcher = trainer.strategy.launcher
    if launcher is not None and getattr(launcher, "procs", None):
        launcher.kill(signal.SIGKILL)
