"""Stage 3, the decoder: from an image's CLIP embedding and the caption to the picture's MoVQ latent."""

from typing import Any, cast

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from open_kandinsky.core.distributed import mean_over_processes
from open_kandinsky.core.draws import Draws, process_draws
from open_kandinsky.data.batch import LatentBatch
from open_kandinsky.diffusion.loss import Loss, noised
from open_kandinsky.diffusion.parameterisation import Parameterisation
from open_kandinsky.networks.unet import Context, UNet
from open_kandinsky.stages.conditioning import InputConditioning, NullConditions
from open_kandinsky.stages.optim import MakeOptimizer, MakeSchedule, stepwise
from open_kandinsky.stages.parallel import Engine


class DecoderStage(LightningModule):
    """Trains the U-Net on latents; `input_conditioning` makes it text-to-image or inpainting."""

    alpha_bar: Tensor

    def __init__(
        self,
        *,
        network: UNet,
        alpha_bar: Float[Tensor, "T"],
        parameterisation: Parameterisation,
        loss: Loss,
        input_conditioning: InputConditioning,
        drop_text: float,  # 0.5 in the official training
        drop_image: float,  # 0.1, independently
        standardise: bool,  # latents by the data's statistics; Kandinsky leaves them as they are
        optimizer: MakeOptimizer,
        lr_schedule: MakeSchedule,
        engine: Engine,
    ) -> None:
        super().__init__()
        self.network, self.parameterisation, self.loss = network, parameterisation, loss
        self.input_conditioning = input_conditioning
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self.null = NullConditions()
        self.drop_text, self.drop_image, self.standardise = drop_text, drop_image, standardise
        self.optimizer, self.lr_schedule, self.engine = optimizer, lr_schedule, engine

    def setup(self, stage: str) -> None:
        data = cast(Any, self.trainer).datamodule
        if self.standardise:
            self.network.standardise.set(*data.statistics("z"))
        self.null.set(**data.null)

    def context(self, batch: LatentBatch, draws: Draws) -> Context:
        """The network's conditioning, from which image and text are dropped independently."""
        image, text = {"image_emb": batch["image_emb"]}, {name: batch[name] for name in self.network.reads[1:]}
        kept = self.null.drop(self.drop_image, draws, **image) + self.null.drop(self.drop_text, draws, **text)
        return self.network.context(**dict(zip(self.network.reads, kept, strict=True)))

    def losses(self, batch: LatentBatch, draws: Draws) -> tuple[Float[Tensor, "b"], Tensor]:
        """Each example's loss, and its timestep."""
        z = self.network.standardise(batch["z"])
        example = noised(z, self.alpha_bar, draws)
        x = torch.cat([example.x_t, self.input_conditioning(z, draws)], dim=1)
        output = self.network(x, example.t, self.context(batch, draws))
        return self.loss(output, example, self.alpha_bar, self.parameterisation), example.t

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        loss = self.losses(batch, process_draws())[0].mean()
        self.log("train/loss", mean_over_processes(loss), prog_bar=True)
        return loss

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> dict[str, Tensor]:
        losses, t = self.losses(batch, process_draws())
        self.log("val/loss", losses.mean(), prog_bar=True, batch_size=len(t), sync_dist=True)
        return {"losses": losses, "t": t}

    def configure_model(self) -> None:
        self.engine.apply(self, self.network)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return stepwise(self.network.parameters(), self.optimizer, self.lr_schedule)
