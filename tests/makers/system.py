"""The whole system at a size that a test can afford, from conf/: networks of a few layers, pictures of 32 pixels."""

from pathlib import Path

import torch
from einops import rearrange
from hydra.utils import instantiate

from open_kandinsky.config import compose
from open_kandinsky.diffusion import schedule
from open_kandinsky.diffusion.parameterisation import X0
from open_kandinsky.networks.blocks import Standardise
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.pipeline import Diffusion, Pipeline, Sampling
from open_kandinsky.weights import store

DIMS = ["dims.clip=32", "dims.clip_text_width=32", "dims.context=32"]
SMALL = {
    "clip": [
        "stage.network.vision={image_size: 32, layers: 1, width: 32, head_width: 16, patch_size: 8}",
        "stage.network.text.layers=1",
        "stage.network.text.heads=2",
        "data.batch_size=8",
    ],
    "movq": ["stage.network.codes=32", "stage.discriminator.channels=8", "data.batch_size=4"],
    "prior": ["stage.network.width=32", "stage.network.layers=1", "stage.network.heads=2", "data.batch_size=8"],
    "decoder": ["stage.network.channels=32", "stage.network.head_channels=16", "stage.network.emb=64"]
    + ["data.batch_size=4", "sampling.steps=3"],
}
SMALL["prior_linear"] = ["network/prior=linear", "data.batch_size=8"]
SMALL["prior_residual"] = ["network/prior=residual", "stage.network.blocks=2", "data.batch_size=8"]
SMALL["prior_none"] = ["network/prior=none", "data.batch_size=8"]
SILENT = ["~callbacks.progress", "+trainer.enable_progress_bar=false"]
PARTS = ("clip", "movq", "prior", "decoder")


def overrides(part, root, *more):
    """What is typed after `open-kandinsky train` for a tiny training of `part` in the folder `root`."""
    experiment = f"experiment={part.partition('_')[0]}_toy"
    chosen = [m for m in more if m.startswith(("experiment=", "run_dir="))]
    paths = [f"root='{root}'"] + ([] if any(m.startswith("run_dir=") for m in chosen) else [f"run_dir='{root}/{part}'"])
    return [experiment, *DIMS, *SMALL[part], "trainer.max_steps=4", *SILENT, *paths, *more]


def config(part, root="runs", *more):
    return compose.compose("train", overrides(part, root, *more))


def stage(part, *more, seed=0):
    torch.manual_seed(seed)
    return instantiate(config(part, "runs", *more).stage, _convert_="all")


def untrained(part, root, *more):
    """A stage's folder as a training leaves it, with weights that were drawn."""
    folder = Path(root) / part
    cfg = config(part, root, *more)
    torch.manual_seed(0)
    network = instantiate(cfg.stage, _convert_="all").network
    nothing_at_zero(network)
    compose.save(cfg, folder / "config.yaml")
    store.write(folder / store.WEIGHTS, network.state_dict())
    return folder


def nothing_at_zero(network):
    """What begins at zero would hide what a network depends on. `normal_` would draw in the order of memory."""
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape))


class Lossless(MoVQ):
    """In place of an autoencoder: the pixels of each 4 x 4 square as 48 channels, so that pictures come back whole."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.factor = 4
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def encode(self, pixels):
        return rearrange(pixels, "b c (h p) (w q) -> b (c p q) h w", p=4, q=4)

    def decode(self, z):
        return rearrange(z, "b (c p q) h w -> b c (h p) (w q)", p=4, q=4)


class Says(torch.nn.Module):
    """In place of a U-Net: it says `answer(x_t, t)`, which is read as standardised x_0, and writes down what it saw."""

    def __init__(self, answer, *, channels=48, beside=0):
        super().__init__()
        self.standardise = Standardise(channels)
        self.standardise.set(torch.linspace(-0.5, 0.5, channels), torch.linspace(0.5, 2, channels))
        self.conv_in = torch.nn.Conv2d(channels + beside, 1, 1)
        self.factor, self.answer, self.channels = 2, answer, channels
        self.seen, self.contexts = [], []

    def context(self, image_emb, text_tokens, text_emb):
        self.contexts.append((image_emb, text_tokens, text_emb))

    def forward(self, x, t, context):
        self.seen.append((x.clone(), t.clone()))
        return self.answer(x[:, : self.channels], t)


def spoken(pipe, answer, *, beside=0, steps=10, scale=1.0, sampler="ddpm", clamp=None):
    """`pipe` with pictures that come back whole, and the decoder that `Says`."""
    return Pipeline(
        clip=pipe.clip,
        text=pipe.text,
        prior=pipe.prior,
        decoder=Diffusion(
            network=Says(answer, beside=beside),
            alpha_bar=schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012),
            parameterisation=X0(),
            sampling=Sampling(steps=steps, scale=scale, sampler=sampler, clamp=clamp),
        ),
        movq=Lossless(),
        size=32,
        device="cpu",
    )
