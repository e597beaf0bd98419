"""Features of sets of pictures under evaluators' networks: Inception, DINOv2, published CLIPs, the system's own CLIP.

Any number of processes extract them block by block into files. A file's folder is named by a hash of everything that
decides its numbers (weights, preparation), and the file holds a hash of its pictures: what has changed is computed
again, and nothing else is. A network's weights are looked for when they are first needed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import open_clip
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.transforms import ClipPixels, to_tensor
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.evaluation.report import json_sha256
from open_kandinsky.evaluation.samples import EvaluatedSystem, SampleBlock
from open_kandinsky.metrics import evaluators
from open_kandinsky.metrics.evaluators import DINOv2, Inception, LPIPSMetric, folded
from open_kandinsky.weights import published, store
from open_kandinsky.weights.published import DINOV2, INCEPTION, VGG16, FoundWeights, PublishedFile


@runtime_checkable
class Pictures(Protocol):
    """A set of pictures in blocks, each picture with its caption."""

    @property
    def name(self) -> str: ...
    def first_blocks(self, n: int) -> list[SampleBlock]:
        """The blocks that hold the first `n` pictures."""
        ...

    def pictures(self, block: SampleBlock) -> list[Image.Image]: ...
    def captions(self, block: SampleBlock) -> list[str]: ...
    def converted(self, block: SampleBlock) -> dict[str, int]:
        """Mode other than RGB -> how many pictures of the block were stored in it; after `pictures`."""
        ...

    def source(self, block: SampleBlock) -> str:
        """A hash of all that decides the block's pictures and captions."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """An evaluator's network, loaded when it is first called."""

    @property
    def name(self) -> str: ...
    def identity(self) -> Mapping[str, Any]:
        """All that decides its numbers, the weights' hash included. ValueError where the weights are missing."""
        ...

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Features by name, [b d], float32, on the CPU."""
        ...


class ExtractorPair(NamedTuple):
    """One network, with the preparation of drawn pictures and with that of real ones."""

    generated: Extractor
    real: Extractor


@dataclass(frozen=True)
class Features:
    """One extractor's features of the first `n` pictures of a set, stored below the folder `out`."""

    out: Path
    pictures: Pictures
    extractor: Extractor
    n: int

    @cached_property
    def folder(self) -> Path:
        key = json_sha256(self.extractor.identity())[:12]
        return self.out / "features" / self.pictures.name / f"{self.extractor.name}-{key}"

    @cached_property
    def blocks(self) -> "list[FeatureBlock]":
        return [FeatureBlock(self, block) for block in self.pictures.first_blocks(self.n)]

    @cached_property
    def source(self) -> str:
        """A hash of all that decides the pictures."""
        each = [self.pictures.source(one.block) for one in self.blocks]
        return hashlib.sha256(" ".join(each).encode()).hexdigest()

    def extract(self) -> None:
        """Compute the blocks that are missing or out of date; returns once all are there, by whatever process."""
        leases = Leases(self.out / "claims" / f"{self.pictures.name}-{self.folder.name}")
        with tqdm(total=len(self.blocks), desc=f"{self.pictures.name}: {self.extractor.name}", unit="block") as bar:
            share(self.blocks, leases, seen=bar.update)

    def read(self) -> dict[str, Tensor]:
        """Features by name, [n d], in the pictures' order. ValueError where they are not finite."""
        parts = [block.read() for block in self.blocks]
        features = {name: torch.cat([part[name] for part in parts])[: self.n] for name in parts[0]}
        for name, x in features.items():
            if rows := (~x.isfinite().all(1)).nonzero().flatten().tolist():
                problem = f"features of {len(rows)} {self.pictures.name} pictures are not finite"
                where = f"{rows[:8]} among them: look at those pictures ({name})"
                raise UserError(f"{self.extractor.name}: {problem}, {where}")
        return features

    def converted(self) -> Counter[str]:
        """Mode other than RGB -> how many pictures were stored in it."""
        return sum((Counter(json.loads(block.metadata()["converted"])) for block in self.blocks), Counter())


@dataclass(frozen=True)
class FeatureBlock:
    """The features of one block, as work that processes share."""

    features: Features
    block: SampleBlock

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def path(self) -> Path:
        return self.features.folder / f"{self.block.name}.safetensors"

    def done(self) -> bool:
        """Whether the file is there, and of the pictures that are there now."""
        return self.path.is_file() and self.metadata()["source"] == self.features.pictures.source(self.block)

    def metadata(self) -> dict[str, str]:
        with safe_open(self.path, "pt") as file:
            return file.metadata()

    def do(self) -> None:
        pictures = self.features.pictures
        x = self.features.extractor(pictures.pictures(self.block), pictures.captions(self.block))
        about = {"source": pictures.source(self.block), "converted": json.dumps(pictures.converted(self.block))}
        files.write_tensors(self.path, {name: part.contiguous() for name, part in x.items()}, about)

    def read(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}


INPUT_PATHS = {"pytorch_fid": evaluators.pytorch_fid, "tf1": evaluators.tf1, "clean": evaluators.clean}


@dataclass(frozen=True)
class EvaluatorWeights:
    """The folder where evaluators' weights are looked for, and the device where they run."""

    folder: str | None
    accept_unknown: bool
    device: str

    @property
    def place(self) -> Path:
        """The folder that weights are fetched to."""
        return Path(torch.hub.get_dir()) / "checkpoints" if self.folder is None else Path(self.folder)

    def find(self, file: PublishedFile) -> FoundWeights:
        return published.find(file, self.place, accept_unknown=self.accept_unknown)


class InceptionFeatures:
    """`pool` [b 2048] and `logits` [b 1008] of the 2015 Inception; how a picture enters it is one of INPUT_PATHS."""

    def __init__(self, *, shelf: EvaluatorWeights, input_path: str) -> None:
        lookup("input_path", input_path, INPUT_PATHS)
        self.shelf, self.input_path = shelf, input_path
        self.name = f"inception_{input_path}"

    @cached_property
    def weights(self) -> FoundWeights:
        return self.shelf.find(INCEPTION)

    def identity(self) -> Mapping[str, Any]:
        return {"weights_sha256": self.weights.sha256, "input_path": self.input_path, "form": "folded, channels_last"}

    @cached_property
    def network(self) -> Inception:
        network = Inception(state=store.read_any(self.weights.path), input_path=INPUT_PATHS[self.input_path])
        return folded(network).to(self.shelf.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        x = self.network(stacked(images).to(self.shelf.device))
        return {"pool": x.pool.float().cpu(), "logits": x.logits_unbiased.float().cpu()}


class ClipFeatures:
    """`image` and `text` [b d] by a published CLIP of open_clip's; `prefix` is put before each caption.

    open_clip's tokenizer keeps the end-of-text token where it cuts a caption. ValueError for a model it does not have.
    """

    def __init__(self, *, shelf: EvaluatorWeights, model: str, pretrained: str, prefix: str) -> None:
        self.shelf, self.model_name, self.pretrained, self.prefix = shelf, model, pretrained, prefix
        self.name = f"clip_{model.lower().replace('-', '_')}"

    @cached_property
    def weights(self) -> FoundWeights:
        return self.shelf.find(published_clip(self.model_name, self.pretrained))

    def identity(self) -> Mapping[str, Any]:
        choices = {"model": self.model_name, "pretrained": self.pretrained, "prefix": self.prefix}
        return choices | {"weights_sha256": self.weights.sha256}

    @cached_property
    def model(self) -> Any:
        model = open_clip.create_model(self.model_name, force_quick_gelu=self.pretrained == "openai")
        model.load_state_dict(clip_state(self.weights))
        return model.eval().to(self.shelf.device)

    @cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        return open_clip.get_tokenizer(self.model_name)

    def cut(self, captions: Sequence[str]) -> list[str]:
        """The captions that are longer than the network reads."""
        longest = self.tokenizer.context_length - 2  # type: ignore[attr-defined]
        return [text for text in captions if len(self.tokenizer.encode(self.prefix + text)) > longest]  # type: ignore[attr-defined]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        size = self.model.visual.image_size  # an int, or (height, width)
        prepare = ClipPixels(size=size[0] if isinstance(size, tuple) else size)
        pixels = torch.stack([prepare(image) for image in images]).to(self.shelf.device)
        token = self.tokenizer([self.prefix + text for text in captions]).to(self.shelf.device)
        emb = {"image": self.model.encode_image(pixels), "text": self.model.encode_text(token)}
        return {name: x.float().cpu() for name, x in emb.items()}


class SystemClip:
    """`image` and `text` [b d] by the evaluated system's own CLIP: nothing to fetch, and no published number to compare
    with."""

    name = "own_clip"
    prefix = ""

    def __init__(self, system: EvaluatedSystem) -> None:
        self.system = system

    def identity(self) -> Mapping[str, Any]:
        return {"weights_sha256": self.system.weights_sha256["clip"]}

    def cut(self, captions: Sequence[str]) -> list[str]:
        return self.system.open().clip.cut(captions)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        pipe = self.system.open()
        emb = {"image": pipe.image_to_embedding(images), "text": pipe.clip.encode_text(captions).emb}
        return {name: x.float().cpu() for name, x in emb.items()}


class DINOv2Features:
    """`cls` [b 1024] by DINOv2 ViT-L/14 (Stein et al. 2023 use it in Inception's place)."""

    name = "dinov2_vit_l_14"

    def __init__(self, *, shelf: EvaluatorWeights) -> None:
        self.shelf = shelf

    @cached_property
    def weights(self) -> FoundWeights:
        return self.shelf.find(DINOV2)

    def identity(self) -> Mapping[str, Any]:
        return {"weights_sha256": self.weights.sha256}

    @cached_property
    def network(self) -> DINOv2:
        network = evaluators.vit_large()
        evaluators.load(network, store.read_any(self.weights.path))
        return DINOv2(network=network, resized=evaluators.resize_clean).to(self.shelf.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        return {"cls": self.network(stacked(images).to(self.shelf.device)).float().cpu()}


class LPIPSDistance:
    """LPIPS [b] between two batches of pictures, both float [-1, 1]."""

    def __init__(self, *, shelf: EvaluatorWeights) -> None:
        self.shelf = shelf

    @cached_property
    def weights(self) -> FoundWeights:
        return self.shelf.find(VGG16)

    @cached_property
    def network(self) -> LPIPSMetric:
        return LPIPSMetric(state=store.read_any(self.weights.path)).to(self.shelf.device)

    @torch.inference_mode()
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x.to(self.shelf.device), y.to(self.shelf.device)).cpu()


@dataclass(frozen=True)
class PreparedExtractor:
    """An extractor behind a preparation of its pictures."""

    extractor: Extractor
    preparation: Preparation

    @property
    def name(self) -> str:
        return self.extractor.name

    @property
    def weights(self) -> FoundWeights | None:
        return getattr(self.extractor, "weights", None)

    def identity(self) -> Mapping[str, Any]:
        return {**self.extractor.identity(), "preparation": self.preparation.identity()}

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        return self.extractor([self.preparation(image) for image in images], captions)


def published_clip(model: str, pretrained: str) -> PublishedFile:
    """The file of a CLIP of open_clip's. OpenAI's URLs name the hash; of others none is published."""
    cfg = open_clip.get_pretrained_cfg(model, pretrained)
    if not cfg:
        tags = sorted(tag for name, tag in open_clip.list_pretrained() if name == model)
        raise UserError(f"open_clip has no {model} pretrained as {pretrained}; it has {', '.join(tags) or 'none'}")
    what = f"open_clip's {model} ({pretrained})"
    if url := cfg.get("url"):
        digest, file = url.split("/")[-2:]
        return PublishedFile(file=file, sha256=digest if len(digest) == 64 else None, url=url, what=what)
    url = f"https://huggingface.co/{cfg['hf_hub'].strip('/')}/resolve/main/open_clip_model.safetensors"
    return PublishedFile(file=f"{model}-{pretrained}.safetensors", sha256=None, url=url, what=what)


def clip_state(found: FoundWeights) -> Mapping[str, Tensor]:
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
