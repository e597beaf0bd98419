"""SLURM, played by a script of its name that writes down what it is asked."""

import stat

import pytest

from open_kandinsky.training import launch

SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$1" in show) echo "JobId=12 JobName=x JobState={state} Restarts=0" ;; *) {then} ;; esac
"""


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Puts a `scontrol` on the path by which the job is in that state; what it is asked stands in the file."""

    def scontrol(state, then="true"):
        script = tmp_path / "scontrol"
        script.write_text(SCONTROL.format(folder=tmp_path, state=state, then=then))
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path / "asked"

    return scontrol


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "NTASKS", "JOB_NAME", "RESTART_COUNT"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)


def test_a_running_job_is_put_back(scontrol, monkeypatch):
    asked = scontrol("RUNNING")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert launch.requeue("12") == "job 12 is put back into the queue, restart 3"
    assert asked.read_text().splitlines() == ["show job -o 12", "requeue 12"]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED"])
def test_a_job_that_somebody_cancelled_or_slurm_has_put_back_is_left_alone(scontrol, state):
    asked = scontrol(state)
    assert launch.requeue("12") == f"not put back into the queue: SLURM calls job 12 {state}"
    assert asked.read_text().splitlines() == ["show job -o 12"]


def test_slurm_may_refuse(scontrol):
    scontrol("RUNNING", "echo Requested operation not permitted >&2; exit 1")
    assert launch.requeue("12") == "job 12 is not requeued: Requested operation not permitted"


def test_without_scontrol(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.requeue("12") == "not put back into the queue: SLURM calls job 12 unknown"


def test_which_job_this_is(monkeypatch):
    assert launch.job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert launch.job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert launch.job() == "11_3"
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3; rm -r .")
    assert launch.job() is None


@pytest.mark.parametrize(
    ("tasks", "devices", "nodes", "fits"),
    [(8, 4, 2, True), (8, [0, 1, 2, 3], 2, True), (8, "auto", 1, True), (8, 4, 1, False), (1, 2, 1, False)],
)
def test_each_device_is_a_task(monkeypatch, tasks, devices, nodes, fits):
    launch.check_tasks(devices, nodes)  # outside of SLURM
    monkeypatch.setenv("SLURM_NTASKS", str(tasks))
    if fits:
        return launch.check_tasks(devices, nodes)
    with pytest.raises(
        ValueError, match=rf"SLURM has started {tasks} task\(s\).* needs {devices * nodes}, one a device"
    ):
        launch.check_tasks(devices, nodes)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    launch.check_tasks(devices, nodes)
