"""Trainings in processes of their own, which a test may kill: begun from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["makers.killed", "open_kandinsky.train", "lightning", "torchmetrics", "webdataset"])


def run(cfg, folder, patch, halts_at):
    """What the verb does with a config; output and errors, and the keys of each batch, go to files in `folder`."""
    import torch

    from open_kandinsky import train
    from open_kandinsky.core import failures

    torch.set_num_threads(1)  # as in the process that runs the tests
    sys.stdout = sys.stderr = open(Path(folder) / "told", "a", buffering=1)  # noqa: SIM115
    watch(Path(folder) / "keys", halts_at)
    if patch:
        patch()
    with failures.exit_on_user_error("train"):
        train.train_and_report(cfg)


def watch(log, halts_at):
    """Each batch's number, counted from the beginning, its epoch and its keys: a line each. At `halts_at`, wait."""
    from lightning import Callback, Trainer

    class Watch(Callback):
        def on_train_batch_start(self, trainer, stage, batch, at):
            number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            with open(log, "a") as file:
                file.write(f"{number} {trainer.current_epoch} {' '.join(batch['key'])}\n")
            while number == halts_at:
                time.sleep(1)

    original = Trainer.__init__

    def watched(self, *options, callbacks, **more):
        original(self, *options, callbacks=[*callbacks, Watch()], **more)

    Trainer.__init__ = watched


def begun(cfg, folder, patch=None, halts_at=None):
    """`patch` is called in the new process before the training, which waits for ever at the batch `halts_at`."""
    Path(folder).mkdir(exist_ok=True)
    process = SERVER.Process(target=run, args=(cfg, folder, patch, halts_at))
    process.start()
    return process


def ended(process, seconds=120):
    """Its exit code; a process that does not end in time is killed, and that fails the test."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"it did not end in {seconds} seconds")
    return process.exitcode


def lines(folder):
    """How many batches have begun, those of all lives of the run together."""
    log = Path(folder) / "keys"
    return log.read_text().count("\n") if log.is_file() else 0


def seen(folder):
    """The epoch and keys of each batch, by its number. A batch that is made again, after a kill, is the same."""
    batches = {}
    for line in (Path(folder) / "keys").read_text().splitlines():
        number, epoch, *keys = line.split()
        assert batches.setdefault(int(number), (epoch, keys)) == (epoch, keys), f"batch {number} differs when repeated"
    assert sorted(batches) == list(range(1, len(batches) + 1))
    return [batches[number] for number in sorted(batches)]


def full_from_the_third():
    """No file may grow beyond some bytes once two checkpoints are written: the system's own limit."""
    import resource

    from open_kandinsky.training.checkpointing import WholeCheckpoints

    original = WholeCheckpoints.save_checkpoint

    def limited(self, checkpoint, path, storage_options=None):
        if checkpoint["global_step"] >= 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        original(self, checkpoint, path, storage_options)

    WholeCheckpoints.save_checkpoint = limited


def killed_in_a_checkpoint():
    """SIGTERM in the middle of a checkpoint's writing, and SIGKILL before it is whole."""
    import torch

    original = torch.save

    def killed(checkpoint, file):
        original({"half": torch.zeros(1000)}, file)
        file.flush()
        if checkpoint["global_step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        file.seek(0)
        original(checkpoint, file)

    torch.save = killed


def one_of_two(rank, port):
    """As Lightning's launcher starts its processes; what is imported already took this one for the only one."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank
