"""What this program needs of SLURM: how its processes were started, and to be started again."""

import os
import re
import subprocess
from collections.abc import Sequence

from open_kandinsky.core.errors import UserError


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
