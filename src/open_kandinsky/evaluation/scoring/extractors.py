"""The evaluators' networks: Inception, DINOv2, published CLIPs, and the CLIP of the system itself.

Each is named by all that decides its numbers, and its weights are looked for when they are first needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.transforms import ClipPixels, to_tensor
from open_kandinsky.evaluation.coco.preparation import Preparation
from open_kandinsky.evaluation.scoring.features import Extractor
from open_kandinsky.evaluation.subject import Subject
from open_kandinsky.metrics.evaluators import dinov2, inception, resize
from open_kandinsky.metrics.evaluators.dinov2 import DINOv2
from open_kandinsky.metrics.evaluators.inception import Inception, folded
from open_kandinsky.metrics.evaluators.lpips import LPIPS
from open_kandinsky.weights import published, store
from open_kandinsky.weights.published import DINOV2, INCEPTION, VGG16, Found, Published

INPUT_PATHS = {"pytorch_fid": inception.pytorch_fid, "tf1": inception.tf1, "clean": inception.clean}


@dataclass(frozen=True)
class Shelf:
    """Where evaluators' weights are looked for, and where they run."""

    folder: str | None
    accept_unknown: bool
    device: str

    @property
    def place(self) -> Path:
        """Where what is fetched goes."""
        return Path(torch.hub.get_dir()) / "checkpoints" if self.folder is None else Path(self.folder)

    def find(self, wanted: Published) -> Found:
        return published.find(wanted, self.place, accept_unknown=self.accept_unknown)


class InceptionFeatures:
    """`pool` [b 2048] and `logits` [b 1008] of the 2015 Inception; how a picture enters it is one of INPUT_PATHS."""

    def __init__(self, *, shelf: Shelf, input_path: str) -> None:
        lookup("input_path", input_path, INPUT_PATHS)
        self.shelf, self.input_path = shelf, input_path
        self.name = f"inception_{input_path}"

    @cached_property
    def weights(self) -> Found:
        return self.shelf.find(INCEPTION)

    def identity(self) -> Mapping[str, Any]:
        return {"weights_sha256": self.weights.sha256, "input_path": self.input_path, "form": "folded, channels_last"}

    @cached_property
    def network(self) -> Inception:
        network = Inception(state=store.read_any(self.weights.path), input_path=INPUT_PATHS[self.input_path])
        return folded(network).to(self.shelf.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        found = self.network(stacked(images).to(self.shelf.device))
        return {"pool": found.pool.float().cpu(), "logits": found.logits_unbiased.float().cpu()}


class ClipFeatures:
    """`image` and `text` [b d] by a published CLIP of open_clip's. `prefix` stands before each caption.

    open_clip's tokenizer keeps the end of text where a caption is cut. ValueError for a model that it has not.
    """

    def __init__(self, *, shelf: Shelf, model: str, pretrained: str, prefix: str) -> None:
        self.shelf, self.model_name, self.pretrained, self.prefix = shelf, model, pretrained, prefix
        self.name = f"clip_{model.lower().replace('-', '_')}"

    @cached_property
    def weights(self) -> Found:
        return self.shelf.find(published_clip(self.model_name, self.pretrained))

    def identity(self) -> Mapping[str, Any]:
        known = {"model": self.model_name, "pretrained": self.pretrained, "prefix": self.prefix}
        return known | {"weights_sha256": self.weights.sha256}

    @cached_property
    def model(self) -> Any:
        made = open_clip.create_model(self.model_name, force_quick_gelu=self.pretrained == "openai")
        made.load_state_dict(clip_state(self.weights))
        return made.eval().to(self.shelf.device)

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        return open_clip.get_tokenizer(self.model_name)

    def cut(self, captions: Sequence[str]) -> list[str]:
        """The captions that are longer than the network reads."""
        room = self.tokenizer.context_length - 2  # type: ignore[attr-defined]
        return [text for text in captions if len(self.tokenizer.encode(self.prefix + text)) > room]  # type: ignore[attr-defined]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        prepare = ClipPixels(size=square(self.model.visual.image_size))
        pixels = torch.stack([prepare(image) for image in images]).to(self.shelf.device)
        token = self.tokenizer([self.prefix + text for text in captions]).to(self.shelf.device)
        found = {"image": self.model.encode_image(pixels), "text": self.model.encode_text(token)}
        return {name: x.float().cpu() for name, x in found.items()}


class OwnClip:
    """`image` and `text` [b d] by the system's own CLIP: no weights to fetch, and no number to compare with others'."""

    name = "own_clip"
    prefix = ""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def identity(self) -> Mapping[str, Any]:
        return {"weights_sha256": self.subject.weights_sha256["clip"]}

    def cut(self, captions: Sequence[str]) -> list[str]:
        return self.subject.open().clip.cut(captions)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        pipe = self.subject.open()
        found = {"image": pipe.image_to_embedding(images), "text": pipe.clip.encode_text(captions).emb}
        return {name: x.float().cpu() for name, x in found.items()}


class DINOv2Features:
    """`cls` [b 1024] by DINOv2 ViT-L/14 (Stein et al. 2023 use it in Inception's place)."""

    name = "dinov2_vit_l_14"

    def __init__(self, *, shelf: Shelf) -> None:
        self.shelf = shelf

    @cached_property
    def weights(self) -> Found:
        return self.shelf.find(DINOV2)

    def identity(self) -> Mapping[str, Any]:
        return {"weights_sha256": self.weights.sha256}

    @cached_property
    def network(self) -> DINOv2:
        network = dinov2.vit_large()
        dinov2.load(network, store.read_any(self.weights.path))
        return DINOv2(network=network, resized=resize.clean).to(self.shelf.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        return {"cls": self.network(stacked(images).to(self.shelf.device)).float().cpu()}


class LPIPSDistance:
    """How far two batches of pictures are apart, [b], both float [-1, 1]; VGG16's weights as for an extractor."""

    def __init__(self, *, shelf: Shelf) -> None:
        self.shelf = shelf

    @cached_property
    def weights(self) -> Found:
        return self.shelf.find(VGG16)

    @cached_property
    def network(self) -> LPIPS:
        return LPIPS(state=store.read_any(self.weights.path)).to(self.shelf.device)

    @torch.inference_mode()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x.to(self.shelf.device), y.to(self.shelf.device)).cpu()


@dataclass(frozen=True)
class Prepared:
    """An extractor that is given prepared pictures."""

    extractor: Extractor
    preparation: Preparation

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def weights(self) -> Found | None:
        return getattr(self.extractor, "weights", None)

    def identity(self) -> Mapping[str, Any]:
        return {**self.extractor.identity(), "preparation": self.preparation.identity()}

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        return self.extractor([self.preparation(image) for image in images], captions)


def published_clip(model: str, pretrained: str) -> Published:
    """Where open_clip says that a CLIP is; of OpenAI's the address names the hash."""
    cfg = open_clip.get_pretrained_cfg(model, pretrained)
    if not cfg:
        there = sorted(tag for name, tag in open_clip.list_pretrained() if name == model)
        raise UserError(f"open_clip has no {model} pretrained as {pretrained}; it has {', '.join(there) or 'none'}")
    what = f"open_clip's {model} ({pretrained})"
    if url := cfg.get("url"):
        digest, file = url.split("/")[-2:]
        return Published(file=file, sha256=digest if len(digest) == 64 else None, url=url, what=what)
    hub = cfg["hf_hub"].strip("/")
    file = "open_clip_model.safetensors"
    named = f"{model}-{pretrained}.safetensors"
    return Published(file=named, sha256=None, url=f"https://huggingface.co/{hub}/resolve/main/{file}", what=what)


def clip_state(found: Found) -> Mapping[str, Tensor]:
    """The tensors of a published CLIP. OpenAI's are TorchScript archives, which bring code: opened only if verified."""
    if found.path.suffix == ".pt" and found.verified:
        state = torch.jit.load(found.path, map_location="cpu").state_dict()
    else:
        state = store.read_any(found.path)
    extra = ("input_resolution", "context_length", "vocab_size")
    return {name: x.float() if x.is_floating_point() else x for name, x in state.items() if name not in extra}


def stacked(images: Sequence[Image.Image]) -> Tensor:
    """uint8 [b 3 h w]. ValueError where sizes differ."""
    if len(sizes := {image.size for image in images}) > 1:
        raise UserError(f"pictures of {len(sizes)} sizes, {sorted(sizes)[:2]} among them: the protocol sets no size")
    return torch.stack([to_tensor(image) for image in images])


def square(size: int | tuple[int, int]) -> int:
    return size[0] if isinstance(size, tuple) else size
