"""What the tests of the MoVQ stage do in several processes: importable, so that a child finds it."""

import os

import torch
from makers.fitting import Losses, Repeated, images, trainer
from makers.system import stage

from open_kandinsky.core.distributed import broadcast_from_first, gather_rows, mean_over_processes, sum_over_processes
from open_kandinsky.networks.quantizer import Codebook

ALL_ON = ["gan/weight=adaptive", "gan/penalty=[r1,lecam]", "network/discriminator=per_image"]
ALL_ON += ["stage.penalties.r1.every=2", "stage.usage.window=3", "stage.adversary_lr_schedule.at=0"]
ALL_ON += ["stage.adversary_ramp=3"]
ALL_ON += ["stage.restart_unused_codes=true", "stage.quantise_from=2", "stage.adversary_from=4", "trainer.max_steps=20"]
# SGD: Adam makes a whole step of a gradient that is nothing but rounding
ALL_ON += ["stage.optimizer._target_=torch.optim.SGD", "~stage.optimizer.betas", "stage.optimizer.lr=1e-2"]


def joined():
    """This process's number among the two."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    return rank


def said():
    """What one process hears of two that say their number."""
    rank = joined()
    x = torch.full((2, 1), float(rank))
    heard = [
        f(x).flatten().tolist() for f in (sum_over_processes, mean_over_processes, gather_rows, broadcast_from_first)
    ]
    assert x.eq(rank).all(), "what was said stays as it was"
    torch.distributed.destroy_process_group()
    return heard


def sharded():
    """Codes restarted where FSDP2 shards them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    joined()
    torch.manual_seed(0)
    book = fully_shard(Codebook(codes=7, channels=3, beta=0.25), mesh=init_device_mesh("cpu", (2,)))
    before, latents = book.embedding.weight.full_tensor().clone(), torch.arange(21.0).view(7, 3)
    book.restart(torch.arange(7) % 2 == 0, latents)
    after = book.embedding.weight.full_tensor()
    torch.distributed.destroy_process_group()
    return before, after


def trained(processes):
    """In float64: an adversary makes much of how float32 rounds."""
    rank, made, batch, losses = int(os.environ["LOCAL_RANK"]), stage("movq", *ALL_ON).double(), images(8), Losses()
    batch["pixels"] = batch["pixels"].double()
    mine = {name: values[8 // processes * rank :][: 8 // processes] for name, values in batch.items()}
    strategy = {"strategy": "ddp_find_unused_parameters_true", "devices": processes} if processes > 1 else {}
    trainer(20, losses, **strategy).fit(made, datamodule=Repeated(mine))
    return losses.curve, made.state_dict()
