"""A prior whose drawings are known, validated in any number of processes."""

import torch
from lightning import LightningModule
from makers.fitting import Repeated, latents, trainer
from makers.system import stage
from torch import distributed as dist
from torch.utils.data import DataLoader

from open_kandinsky.callbacks.preview import Drawings
from open_kandinsky.callbacks.validation import Codes, FrechetOfDrawings, LossByTimestep, PriorFigures
from open_kandinsky.diffusion import schedule
from open_kandinsky.diffusion.parameterisation import X0
from open_kandinsky.networks.blocks import Standardise
from open_kandinsky.stages.conditioning import NullConditions

ROWS, WIDTH = 12, 32


class Says(torch.nn.Module):
    """In place of a prior: x_0 is its text embedding, as standardised as the network's."""

    def __init__(self):
        super().__init__()
        self.standardise = Standardise(WIDTH)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def prefix(self, text_tokens, text_emb, text_mask):
        return text_emb

    def forward(self, x_t, t, prefix):
        return prefix


class Knowing(LightningModule):
    """Its captions' embeddings are whatever the test says; nothing is trained."""

    def __init__(self):
        super().__init__()
        self.network, self.parameterisation, self.null = Says(), X0(), NullConditions()
        self.register_buffer("alpha_bar", schedule.linear(T=20, beta_min=0.01, beta_max=0.4))
        zeros = {"text_tokens": torch.zeros(1, 1, 1), "text_mask": torch.ones(1, 1, dtype=torch.bool)}
        self.null.set(text_emb=torch.zeros(1, WIDTH), **zeros)

    def validation_step(self, batch, at):
        pass


def batch(text, image, rows):
    n = len(rows)
    return {
        "image_emb": image[rows],
        "text_emb": text[rows],
        "text_tokens": torch.zeros(n, 1, 1),
        "text_mask": torch.ones(n, 1, dtype=torch.bool),
        "key": [f"0/{row}" for row in rows.tolist()],
    }


def image_embeddings():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3))


class Flat:
    """In place of an evaluator's: the means of a picture's parts."""

    name = "parts"

    def drawn(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)

    def real(self, batch):
        return batch["image_emb"][:, :12]


def prior_figures(rank, processes):
    text = image_embeddings() + torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5))
    rows = torch.arange(rank, ROWS, processes).split(2)
    batches = [batch(text, image_embeddings(), r) for r in rows]
    callback = PriorFigures(sampler="ddpm", steps=3, scale=2.0, limit=None, retrieval=[1, 5])
    return validated(Knowing(), batches, callback)


def decoder_figures(rank, processes):
    """Batches of four together, of which each process has a part; losses are the stage's own."""
    whole, b = latents(), 4 // processes
    spans = [slice(at + rank * b, at + rank * b + b) for at in (0, 4)]
    batches = [{name: value[span] for name, value in whole.items()} for span in spans]
    draw = Drawings(movq=None, sampler="ddpm", steps=2, scale=2.0)
    frechet = FrechetOfDrawings(every=1, count=6, draw=draw, features=Flat())
    return validated(stage("decoder"), batches, LossByTimestep(bins=3), frechet)


def movq_figures(rank, processes):
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    batches = [{"pixels": part, "key": ["k"] * len(part)} for part in pixels[rank::processes].split(1)]
    return validated(stage("movq"), batches, Codes())


def validated(module, batches, *callbacks):
    processes = dist.get_world_size() if dist.is_initialized() else 1
    data = Repeated(latents())
    data.val_dataloader = lambda: DataLoader(batches, batch_size=None)
    settings = dict(devices=processes, strategy="ddp" if processes > 1 else "auto", use_distributed_sampler=False)
    found = trainer(1, *callbacks, **settings).validate(module, datamodule=data, verbose=False)[0]
    return {name: float(value) for name, value in found.items()}


KINDS = {"prior": prior_figures, "decoder": decoder_figures, "movq": movq_figures}


def all_figures(rank, processes):
    if processes > 1:
        dist.init_process_group("gloo", rank=rank, world_size=processes)
    return {kind: figures(rank, processes) for kind, figures in KINDS.items()}


def of_two():
    import os

    return all_figures(int(os.environ["LOCAL_RANK"]), 2)


def gradient_norms(strategy, processes):
    """Of three steps of a prior, and whether a checkpoint could be written."""
    from hydra.utils import instantiate
    from makers.fitting import QUIET, Losses
    from makers.system import config
    from makers.together import Shared

    from open_kandinsky.callbacks.health import Health
    from open_kandinsky.callbacks.seeding import RandomNumbers

    cfg = config("prior", "runs", f"strategy={strategy}", f"trainer.devices={processes}", "trainer.max_steps=3")
    torch.manual_seed(0)
    made, losses = instantiate(cfg.stage, _convert_="all"), Losses()
    settings = QUIET | dict(use_distributed_sampler=False, log_every_n_steps=1)
    callbacks = [Health(), losses, RandomNumbers(seed=0)]
    run = instantiate(cfg.trainer, _convert_="all")(callbacks=callbacks, **settings)
    run.fit(made, datamodule=Shared())
    kinds = sorted({type(weight).__name__ for weight in made.parameters()})
    return {"norms": [step["train/gradient_norm"] for step in losses.curve], "kinds": kinds}
