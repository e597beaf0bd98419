"""What `precompute` does with one tar: read it, prepare its samples in threads, and encode them by frozen networks.

`Input` is a tar, of which a hash is computed while it is read. `PrepareInputs` makes of a sample the pixels that each
encoder wants, and lists all of its captions. `Encoders` are CLIP, the image autoencoder and a text encoder.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import BadSample, UserError
from open_kandinsky.data.cache.rows import CacheRows, Keep, rows_of
from open_kandinsky.data.pairs import captions_at
from open_kandinsky.data.tar.index import Stamp, stamps
from open_kandinsky.data.tar.opening import REMOTE, open_url
from open_kandinsky.data.tar.sample import Raw, describe_members, read_image, read_info, refuse_unusable, stem
from open_kandinsky.data.transforms import MAX_PIXELS
from open_kandinsky.networks.clip import Clip, Text
from open_kandinsky.networks.movq import MoVQ

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch(make: Callable[[Item], Made], items: Iterable[Item], *, workers: int, most: int) -> Iterator[Future[Made]]:
    """Futures of `make(item)` in the items' order, by `workers` threads that run at most `most` items ahead.

    PIL and torch release the interpreter's lock while they decode, resize and encode.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) >= most:
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class PreparedInputs(NamedTuple):
    """A sample as encoders take it. `pixels`: by the name of the field that is encoded from them."""

    key: str
    captions: list[str]
    pixels: dict[str, Tensor]


@dataclass(frozen=True)
class PrepareInputs:
    """Prepares samples. `transforms`: field that is encoded from the picture -> transform. `captions`: their places."""

    transforms: Mapping[str, Callable[[Image.Image], Tensor]]
    captions: Sequence[str]
    background: str = "white"

    def __call__(self, raw: Raw) -> PreparedInputs:
        """Raises BadSample for a sample that cannot be used."""
        refuse_unusable(raw)
        captions = all_captions(raw, self.captions)
        image = read_image(raw, MAX_PIXELS, self.background)
        return PreparedInputs(raw.key, captions, {name: make(image) for name, make in self.transforms.items()})


def all_captions(raw: Raw, places: Sequence[str]) -> list[str]:
    """The captions of every place, each once: img2dataset writes the same one into txt and json.

    Raises BadSample where there is none.
    """
    info = read_info(raw)
    captions = list(dict.fromkeys(caption for place in places for caption in captions_at(place, raw, info)))
    if not captions:
        raise BadSample("missing caption", f"nothing in {', '.join(places)}; {describe_members(raw)}")
    return captions


CHUNK = 1 << 20


class Digest(NamedTuple):
    """Size and hash of a tar's bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Input:
    """A tar of which a shard of the same name is made."""

    url: str

    @property
    def name(self) -> str:
        return stem(self.url)

    @property
    def stamp(self) -> Stamp:
        """Its size and version, without reading it."""
        return stamps([self.url])[0]

    @property
    def digest(self) -> Digest:
        """By reading all of it."""
        return digest(self.url)

    @contextmanager
    def at_hand(self) -> Iterator[tuple[str, "Future[Digest]"]]:
        """A path on this machine, and a future of its digest; the path is valid within the block."""
        way = fetched if REMOTE.match(self.url) or self.url.startswith("pipe:") else in_place
        with ThreadPoolExecutor(1) as hasher, way(self.url, hasher) as at_hand:
            yield at_hand


def inputs(urls: Sequence[str]) -> list[Input]:
    """One for each tar. Raises UserError for two tars of one name."""
    by_name: dict[str, Input] = {}
    for url in urls:
        one = by_name.setdefault(stem(url), Input(url))
        if one.url != url:
            same = f"{one.url!r} and {url!r} are both called {one.name}, and so would what is made of them"
            raise UserError(f"{same}: precompute them into two folders, or rename one")
    return list(by_name.values())


@contextmanager
def in_place(url: str, hasher: ThreadPoolExecutor) -> Iterator[tuple[str, "Future[Digest]"]]:
    """A tar of this machine, hashed by a thread while it is read: the disk is read once for both."""
    yield url, hasher.submit(digest, url)


@contextmanager
def fetched(url: str, hasher: ThreadPoolExecutor) -> Iterator[tuple[str, "Future[Digest]"]]:
    """A tar from elsewhere, hashed as it comes, in a temporary file."""
    with TemporaryDirectory(prefix="open-kandinsky-") as folder:
        path = Path(folder) / f"{stem(url)}.tar"
        with open_url(url) as source, open(path, "wb") as copy:
            found = hashed(source, copy.write)
        yield str(path), hasher.submit(lambda: found)


def digest(url: str) -> Digest:
    """The digest of all bytes of an address."""
    with open_url(url) as source:
        return hashed(source, len)


def hashed(source: BufferedIOBase, each: Callable[[bytes], Any]) -> Digest:
    """The digest of the rest of a stream; `each` is called with every chunk of it."""
    size, sha256 = 0, hashlib.sha256()
    while chunk := source.read(CHUNK):
        each(chunk)
        sha256.update(chunk)
        size += len(chunk)
    return Digest(size, sha256.hexdigest())


TEXT_FIELDS = ("text_emb", "text_tokens", "text_mask")


class Encoders:
    """The frozen networks. `text` encodes captions, and may be `clip`; `movq` may be None: a prior needs no latents.

    `latents`: the type in which these are stored. `precision`: of encoding, bfloat16 by autocast.
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

    def rows(self, samples: Sequence[PreparedInputs]) -> CacheRows:
        """A cache's rows of these samples. Raises UserError for NaN, and for values too large for half precision."""
        captions = [caption for sample in samples for caption in sample.captions]
        images, texts = self.images(samples), self.texts(self.text.encode_text, captions)
        rows = rows_of(images, texts, [sample.captions for sample in samples], [s.key for s in samples], self.keep)
        for name, column in rows.columns.items():
            if column.is_floating_point() and not bool(column.isfinite().all()):
                where = f"{name} of {rows.key[0]} to {rows.key[-1]} holds what is no number in {column.dtype}"
                raise UserError(f"{where}: latents=float32 and precision=float32 reach further")
        return rows

    def images(self, samples: Sequence[PreparedInputs]) -> dict[str, Tensor]:
        """Embeddings, and latents where there is an autoencoder."""
        with self.encoding():
            encoded = {"image_emb": self.clip.encode_image(self.to_device(samples, "image_emb")).float()}
            if self.movq is not None:
                encoded["z"] = self.movq.encode(self.to_device(samples, "z")).to(self.latents)
        return {name: values.cpu() for name, values in encoded.items()}

    def texts(self, encode: Any, *captions: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings, states and masks: of captions, or of the null text."""
        with self.encoding():
            text: Text = encode(*captions)
        return dict(zip(TEXT_FIELDS, (text.emb.float().cpu(), text.tokens.float().cpu(), text.mask.cpu()), strict=True))

    def null(self) -> dict[str, Tensor]:
        """The null conditions of classifier-free guidance and condition dropout, a batch of one."""
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

    def to_device(self, samples: Sequence[PreparedInputs], name: str) -> Tensor:
        return self.send(torch.stack([sample.pixels[name] for sample in samples]), self.device)


def pinned(pixels: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, so that the copy does not hold up the threads that prepare the next pictures."""
    return pixels.pin_memory().to(device, memory_format=torch.channels_last, non_blocking=True)


# On a GPU convolutions are faster in channels_last; on a CPU the numbers stay those of training.
PLACING = {"cpu": (torch.preserve_format, Tensor.to), "cuda": (torch.channels_last, pinned)}
