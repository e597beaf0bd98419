"""Trainings that stand still, in processes of their own: the watchdog ends a process."""

import ctypes
import os
import time

import torch
from lightning import LightningModule
from makers.fitting import Repeated, trainer
from makers.ranks import SERVER, free_port

from open_kandinsky.callbacks.watchdog import Watchdog

FOREVER = 60


class Steps(LightningModule):
    """Its third step hangs, or keeps Python's lock for three seconds, where it is asked to."""

    def __init__(self, hangs, keeps_lock=False):
        super().__init__()
        self.network, self.hangs, self.keeps_lock = torch.nn.Linear(2, 1), hangs, keeps_lock

    def training_step(self, batch, at):
        if self.hangs and at == 2:
            time.sleep(FOREVER)
        if self.keeps_lock and at == 2:
            time.sleep(0.5)  # the watchdog looks: it is no first step any more
            ctypes.PyDLL(None).sleep(3)
        return self.network(batch["x"]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rows(torch.utils.data.Dataset):
    def __init__(self, hangs):
        self.hangs = hangs

    def __len__(self):
        return 8

    def __getitem__(self, at):
        if self.hangs and at == 2:
            time.sleep(FOREVER)
        return {"x": torch.ones(1, 2), "key": [str(at)]}


class Data(Repeated):
    def __init__(self, hangs, workers):
        super().__init__({})
        self.hangs, self.workers, self.shards = hangs, workers, ["only.tar"]

    def train_dataloader(self):
        several = dict(prefetch_factor=1, multiprocessing_context="fork") if self.workers else {}
        return torch.utils.data.DataLoader(Rows(self.hangs), batch_size=None, num_workers=self.workers, **several)


def limits(**changes):
    return dict(after=1.0, first_after=30, validation_after=30, checkpoint_after=30, stop_after=0.5) | changes


def train(log, folder, rank, processes, *, data=False, step=False, lock=False, workers=0):
    """`data`, `step`, `lock`: which of them hangs, in the last process."""
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    last = rank == processes - 1
    settings = dict(devices=processes, strategy="ddp") if processes > 1 else {}
    run = trainer(8, Watchdog(folder=str(folder), **limits()), use_distributed_sampler=False, **settings)
    run.fit(Steps(step and last, lock and last), datamodule=Data(data and last, workers))


def child(port, rank, processes, arguments, options):
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if processes > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=processes)
    train(*arguments, rank, processes, **options)


def stalled(folder, processes=1, **options):
    """The exit codes, and what was said by all."""
    port, log = free_port(), folder / "stderr"
    started = [
        SERVER.Process(target=child, args=(port, rank, processes, (log, folder / "beats"), options))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes, log.read_text()
