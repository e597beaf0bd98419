"""The frozen networks whose answers are kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from open_kandinsky.caching.prepared import Prepared
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.rows import Rows, rows_of
from open_kandinsky.data.caches.states import Keep
from open_kandinsky.networks.clip import Clip, Text
from open_kandinsky.networks.movq import MoVQ

TEXT_FIELDS = ("text_emb", "text_tokens", "text_mask")


class Encoders:
    """`text` reads the captions, and may be `clip` itself; `movq` may be absent: a prior needs no latents.

    `latents` is what they are stored in. Encoded in `precision`, bfloat16 by autocast, on the device where they are.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        movq: MoVQ | None,
        text: Any,
        keep: Keep,
        latents: torch.dtype,
        precision: torch.dtype,
        device: str,
    ) -> None:
        self.device = torch.device(device)
        self.memory_format, self.send = PLACING.get(self.device.type, PLACING["cpu"])
        self.clip, self.movq, self.text = (self.placed(network) for network in (clip, movq, text))
        self.keep, self.latents, self.precision = keep, latents, precision

    def rows(self, samples: Sequence[Prepared]) -> Rows:
        """What a cache holds of these samples. ValueError for what is no number, or too great for half precision."""
        captions = [caption for sample in samples for caption in sample.captions]
        images, texts = self.images(samples), self.texts(self.text.encode_text, captions)
        rows = rows_of(images, texts, [sample.captions for sample in samples], [s.key for s in samples], self.keep)
        for name, column in rows.columns.items():
            if column.is_floating_point() and not bool(column.isfinite().all()):
                told = f"{name} of {rows.key[0]} to {rows.key[-1]} holds what is no number in {column.dtype}"
                raise UserError(f"{told}: latents=float32 and precision=float32 reach further")
        return rows

    def images(self, samples: Sequence[Prepared]) -> dict[str, Tensor]:
        """The embeddings, and the latents where there is an autoencoder."""
        with self.encoding():
            made = {"image_emb": self.clip.encode_image(self.sent(samples, "image_emb")).float()}
            if self.movq is not None:
                made["z"] = self.movq.encode(self.sent(samples, "z")).to(self.latents)
        return {name: values.cpu() for name, values in made.items()}

    def texts(self, encode: Any, *captions: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings, states and masks: of captions, or of the null text."""
        with self.encoding():
            text: Text = encode(*captions)
        return dict(zip(TEXT_FIELDS, (text.emb.float().cpu(), text.tokens.float().cpu(), text.mask.cpu()), strict=True))

    def null(self) -> dict[str, Tensor]:
        """The conditions of nothing, as guidance and condition dropout want them."""
        with self.encoding():
            image = self.clip.null_image().float().cpu()
        return {"image_emb": image} | self.texts(self.text.null_text)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)
        with torch.inference_mode(), autocast:
            yield

    def placed(self, network: Any) -> Any:
        return None if network is None else network.to(self.device, memory_format=self.memory_format)

    def sent(self, samples: Sequence[Prepared], name: str) -> Tensor:
        return self.send(torch.stack([sample.pixels[name] for sample in samples]), self.device)


def plainly(pixels: Tensor, device: torch.device) -> Tensor:
    return pixels.to(device)


def pinned(pixels: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, so that the copy does not hold up the threads that prepare the next pictures."""
    return pixels.pin_memory().to(device, memory_format=torch.channels_last, non_blocking=True)


# On a GPU convolutions are faster in channels_last; on a CPU the numbers stay those of training.
PLACING = {"cpu": (torch.preserve_format, plainly), "cuda": (torch.channels_last, pinned)}
