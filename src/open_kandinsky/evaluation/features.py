"""What an evaluator's network makes of a set of pictures: block by block, by any number of processes, once.

Features are kept in files under a name that says what decides them: the network's weights, how a picture is prepared
for it, and the pictures themselves. What has changed is computed anew, and nothing else.

The evaluators' networks: Inception, DINOv2, published CLIPs, and the CLIP of the system itself.

Each is named by all that decides its numbers, and its weights are looked for when they are first needed.
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
from open_kandinsky.evaluation.samples import SampleBlock, Subject
from open_kandinsky.metrics import evaluators
from open_kandinsky.metrics.evaluators import DINOv2, Inception, LPIPSMetric, folded
from open_kandinsky.weights import published, store
from open_kandinsky.weights.published import DINOV2, INCEPTION, VGG16, FoundWeights, PublishedFile


@runtime_checkable
class Pictures(Protocol):
    """A set of pictures in blocks, each with its caption."""

    @property
    def name(self) -> str: ...
    def of(self, n: int) -> list[SampleBlock]: ...
    def pictures(self, block: SampleBlock) -> list[Image.Image]: ...
    def captions(self, block: SampleBlock) -> list[str]: ...
    def converted(self, block: SampleBlock) -> dict[str, int]:
        """Of the pictures just read, how many were stored in another mode than RGB, by mode."""
        ...

    def source(self, block: SampleBlock) -> str:
        """What decides the block's pictures and captions, as a hash."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """An evaluator's network, loaded when it is first called."""

    @property
    def name(self) -> str: ...
    def identity(self) -> Mapping[str, Any]:
        """All that decides its numbers, its weights' hash among it. ValueError where the weights are not at hand."""
        ...

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Features by name, [b d], float32, on the CPU."""
        ...


class ExtractorPair(NamedTuple):
    """One network, as drawn and as real pictures are prepared for it."""

    generated: Extractor
    real: Extractor


@dataclass(frozen=True)
class Features:
    """One extractor's features of the first `n` of a set of pictures, in the folder `out`, with leases beside them."""

    out: Path
    pictures: Pictures
    extractor: Extractor
    n: int

    def extract(self) -> None:
        leases = Leases(self.out / "claims" / f"{self.pictures.name}-{self.folder.name}")
        units = [Extracted(self, block) for block in self.pictures.of(self.n)]
        with tqdm(total=len(units), desc=f"{self.pictures.name}: {self.extractor.name}", unit="block") as bar:
            share(units, leases, seen=bar.update)

    def gathered(self) -> dict[str, Tensor]:
        """By name, [n d], in the pictures' order. ValueError where features are not finite."""
        parts = [Extracted(self, block).read() for block in self.pictures.of(self.n)]
        whole = {name: torch.cat([part[name] for part in parts])[: self.n] for name in parts[0]}
        for name, x in whole.items():
            if rows := (~x.isfinite().all(1)).nonzero().flatten().tolist():
                told = f"{self.extractor.name}: features of {len(rows)} {self.pictures.name} pictures are not finite"
                raise UserError(f"{told}, {rows[:8]} among them: look at those pictures ({name})")
        return whole

    def converted(self) -> Counter[str]:
        """How many pictures were stored in another mode than RGB, by mode."""
        each = [Extracted(self, block).about() for block in self.pictures.of(self.n)]
        return sum((Counter(json.loads(about["converted"])) for about in each), Counter())

    @cached_property
    def source(self) -> str:
        """What decides the pictures, as a hash."""
        return hashlib.sha256(" ".join(map(self.pictures.source, self.pictures.of(self.n))).encode()).hexdigest()

    @cached_property
    def folder(self) -> Path:
        key = json_sha256(self.extractor.identity())[:12]
        return self.out / "features" / self.pictures.name / f"{self.extractor.name}-{key}"


@dataclass(frozen=True)
class Extracted:
    """One block's features."""

    features: Features
    block: SampleBlock

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def path(self) -> Path:
        return self.features.folder / f"{self.block.name}.safetensors"

    def done(self) -> bool:
        """Whether the file is there, and of the pictures that are."""
        if not self.path.is_file():
            return False
        return self.about()["source"] == self.features.pictures.source(self.block)

    def about(self) -> dict[str, str]:
        with safe_open(self.path, "pt") as file:
            return file.metadata()

    def do(self) -> None:
        pictures = self.features.pictures
        found = self.features.extractor(pictures.pictures(self.block), pictures.captions(self.block))
        about = {"source": pictures.source(self.block), "converted": json.dumps(pictures.converted(self.block))}
        files.write_tensors(self.path, {name: x.contiguous() for name, x in found.items()}, about)

    def read(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}


INPUT_PATHS = {"pytorch_fid": evaluators.pytorch_fid, "tf1": evaluators.tf1, "clean": evaluators.clean}


@dataclass(frozen=True)
class EvaluatorWeights:
    """Where evaluators' weights are looked for, and where they run."""

    folder: str | None
    accept_unknown: bool
    device: str

    @property
    def place(self) -> Path:
        """Where what is fetched goes."""
        return Path(torch.hub.get_dir()) / "checkpoints" if self.folder is None else Path(self.folder)

    def find(self, wanted: PublishedFile) -> FoundWeights:
        return published.find(wanted, self.place, accept_unknown=self.accept_unknown)


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
        found = self.network(stacked(images).to(self.shelf.device))
        return {"pool": found.pool.float().cpu(), "logits": found.logits_unbiased.float().cpu()}


class ClipFeatures:
    """`image` and `text` [b d] by a published CLIP of open_clip's. `prefix` stands before each caption.

    open_clip's tokenizer keeps the end of text where a caption is cut. ValueError for a model that it has not.
    """

    def __init__(self, *, shelf: EvaluatorWeights, model: str, pretrained: str, prefix: str) -> None:
        self.shelf, self.model_name, self.pretrained, self.prefix = shelf, model, pretrained, prefix
        self.name = f"clip_{model.lower().replace('-', '_')}"

    @cached_property
    def weights(self) -> FoundWeights:
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
    """How far two batches of pictures are apart, [b], both float [-1, 1]; VGG16's weights as for an extractor."""

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
    """An extractor that is given prepared pictures."""

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
    """Where open_clip says that a CLIP is; of OpenAI's the address names the hash."""
    cfg = open_clip.get_pretrained_cfg(model, pretrained)
    if not cfg:
        there = sorted(tag for name, tag in open_clip.list_pretrained() if name == model)
        raise UserError(f"open_clip has no {model} pretrained as {pretrained}; it has {', '.join(there) or 'none'}")
    what = f"open_clip's {model} ({pretrained})"
    if url := cfg.get("url"):
        digest, file = url.split("/")[-2:]
        return PublishedFile(file=file, sha256=digest if len(digest) == 64 else None, url=url, what=what)
    hub = cfg["hf_hub"].strip("/")
    file = "open_clip_model.safetensors"
    named = f"{model}-{pretrained}.safetensors"
    return PublishedFile(file=named, sha256=None, url=f"https://huggingface.co/{hub}/resolve/main/{file}", what=what)


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


def square(size: int | tuple[int, int]) -> int:
    return size[0] if isinstance(size, tuple) else size
