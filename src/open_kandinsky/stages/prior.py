"""Stage 2, the prior: from a caption's CLIP embedding to its image's CLIP embedding."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from open_kandinsky.core.distributed import mean_over_processes
from open_kandinsky.core.draws import Draws, process_draws
from open_kandinsky.data.batch import EmbeddingBatch
from open_kandinsky.diffusion.loss import Loss, noised
from open_kandinsky.diffusion.parameterisation import Parameterisation
from open_kandinsky.stages.conditioning import NullConditions
from open_kandinsky.stages.optim import MakeOptimizer, MakeSchedule, stepwise
from open_kandinsky.stages.parallel import Engine


class PriorStage(LightningModule):
    """Trains any of `networks.prior`; for one that ignores x_t and t, the same loss is plain regression.

    The network standardises embeddings by statistics in its state dict. They are the data's, or, for a network that
    begins with pretrained weights (`standardise` false), those of these weights.
    """

    network: Any
    alpha_bar: Tensor

    def __init__(
        self,
        *,
        network: nn.Module,
        alpha_bar: Float[Tensor, "T"],
        parameterisation: Parameterisation,
        loss: Loss,
        drop_text: float,  # chance of training without the caption, for guidance; 0.1 in the official training
        standardise: bool,  # by the data's statistics; else by those that the network begins with
        optimizer: MakeOptimizer,
        lr_schedule: MakeSchedule,
        engine: Engine,
    ) -> None:
        super().__init__()
        self.network, self.parameterisation, self.loss = network, parameterisation, loss
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self.null = NullConditions()
        self.drop_text, self.standardise = drop_text, standardise
        self.optimizer, self.lr_schedule, self.engine = optimizer, lr_schedule, engine

    def setup(self, stage: str) -> None:
        data = cast(Any, self.trainer).datamodule
        if self.standardise:
            self.network.standardise.set(*data.statistics("image_emb"))
        self.null.set(**data.null)

    def prefix(self, batch: EmbeddingBatch, chance: float, draws: Draws) -> Any:
        """The captions, some of them dropped, as the network's prefix."""
        text = {name: batch[name] for name in ("text_tokens", "text_emb", "text_mask")}
        return self.network.prefix(*self.null.drop(chance, draws, **text))

    def training_step(self, batch: EmbeddingBatch, batch_idx: int) -> Tensor:
        draws = process_draws()
        example = noised(self.network.standardise(batch["image_emb"]), self.alpha_bar, draws)
        output = self.network(example.x_t, example.t, self.prefix(batch, self.drop_text, draws))
        loss = self.loss(output, example, self.alpha_bar, self.parameterisation).mean()
        self.log("train/loss", mean_over_processes(loss), prog_bar=True)
        return loss

    def validation_step(self, batch: EmbeddingBatch, batch_idx: int) -> None:
        """Log cosines to the image's embedding: of x_0 as predicted from pure noise, and of the caption's embedding."""
        true, draws = batch["image_emb"], process_draws()
        t = torch.full((len(true),), len(self.alpha_bar) - 1, device=true.device)
        x_0 = self.network(draws.normal(true), t, self.prefix(batch, 0.0, draws))
        x_0 = self.network.standardise.inverse(x_0)
        for name, embedding in {"prior": x_0, "text": batch["text_emb"]}.items():
            cosine = F.cosine_similarity(embedding, true).mean()
            self.log(f"val/cosine_{name}", cosine, prog_bar=True, batch_size=len(true), sync_dist=True)

    def configure_model(self) -> None:
        self.engine.apply(self, self.network)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return stepwise(self.network.parameters(), self.optimizer, self.lr_schedule)
