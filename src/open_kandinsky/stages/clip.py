"""Stage 0, optional: CLIP is trained contrastively on images and their captions (Radford et al. 2021)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from open_clip.loss import ClipLoss
from torch import Tensor

from open_kandinsky.core.distributed import gather_rows, mean_over_processes
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.batch import ImageBatch
from open_kandinsky.networks.clip import Clip
from open_kandinsky.stages.optim import MakeOptimizer, MakeSchedule, stepwise
from open_kandinsky.stages.parallel import Engine


class ClipStage(LightningModule):
    """Trains open_clip's model by its loss, for a domain of one's own. Kandinsky uses OpenAI's frozen weights."""

    def __init__(self, *, network: Clip, optimizer: MakeOptimizer, lr_schedule: MakeSchedule, engine: Engine) -> None:
        super().__init__()
        self.network = network
        self.optimizer, self.lr_schedule, self.engine = optimizer, lr_schedule, engine

    def setup(self, stage: str) -> None:
        self.contrast = ClipLoss(
            local_loss=True, gather_with_grad=True, rank=self.global_rank, world_size=self.trainer.world_size
        )

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise UserError(
                "stage=clip with strategy=fsdp: CLIP's temperature is one number, which FSDP2 does not shard: "
                "take strategy=ddp"
            )
        self.engine.apply(self, self.network)

    def embed(self, batch: ImageBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Image and caption embeddings, of L2 norm 1."""
        image = self.network.encode_image(batch["clip_pixels"])
        text = self.network.encode_text(batch["caption"]).emb
        return F.normalize(image, dim=1), F.normalize(text, dim=1)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        image, text = self.embed(batch)
        loss = self.contrast(image, text, self.network.model.logit_scale.exp())
        self.log("train/loss", mean_over_processes(loss), prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep the temperature at 0.01 or more, as in CLIP's training, before an average or a checkpoint reads it."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.network.model.logit_scale.clamp_(0, math.log(100))

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        image, text = map(gather_rows, self.embed(batch))  # retrieval is among all processes' captions
        correct = (image @ text.T).argmax(1) == torch.arange(len(image), device=image.device)
        self.log("val/retrieval", correct.float().mean(), prog_bar=True, batch_size=len(image), sync_dist=True)
        self.log("val/cosine", (image * text).sum(1).mean(), batch_size=len(image), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return stepwise(self.network.parameters(), self.optimizer, self.lr_schedule)
