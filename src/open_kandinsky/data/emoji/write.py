"""Writes emoji as tar shards in img2dataset's layout: train/ and a folder for each split to be judged on."""

import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.emoji.captions import COLOURS, ENGLISH, NAMES, WHITE, caption
from open_kandinsky.data.emoji.pictures import StylePictures
from open_kandinsky.data.emoji.things import LANGUAGE, SEEN, SPLITS, Emoji, Splits
from open_kandinsky.data.shapes.write import LARGEST_SHARD, tar_writer, write_sample

TRAIN = "train"


class EmojiSample(NamedTuple):
    """One picture to be written: an emoji in a style before a colour, with a caption in one language."""

    emoji: Emoji
    names: Mapping[str, str]  # by language
    pictures: StylePictures
    background: str
    language: str
    others: Sequence[str]  # the languages in which it may be named besides
    split: str

    def text(self, language: str) -> str:
        """The caption in a language."""
        return caption(
            self.names[language], style=self.pictures.style.name, background=self.background, language=language
        )


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """All emoji that some style has a picture of, and what is held out. `backgrounds`: colours a training picture."""

    emojis: Sequence[tuple[Emoji, Mapping[str, str]]]
    styles: Sequence[StylePictures]
    splits: Splits
    backgrounds: int
    size: int
    seed: int

    def train(self) -> Iterator[EmojiSample]:
        """Each picture that is not held out, white first and then before other colours, in an order of chance."""
        every = [sample for sample in self.pictures() if sample.split == SEEN]
        more = [sample._replace(background=name) for sample in every for name in self.colours(sample)]
        yield from random.Random(f"{self.seed}/train").sample(more, len(more))

    def judged(self, split: str) -> Iterator[EmojiSample]:
        """The pictures of a split, each once before a colour, in an order of chance.

        Of `unseen_language` they are those that training sees, named in the language that it never reads for them.
        """
        every = [sample for sample in self.pictures() if sample.split == (SEEN if split == LANGUAGE else split)]
        if split == LANGUAGE:
            held = self.splits.languages
            every = [
                s._replace(language=held[s.emoji.thing], others=(), split=split) for s in every if s.emoji.thing in held
            ]
            every = [sample for sample in every if sample.language in sample.names]
        draws = random.Random(f"{self.seed}/{split}")
        for sample in draws.sample(every, len(every)):
            yield sample._replace(background=draws.choice(NAMES))

    def pictures(self) -> Iterator[EmojiSample]:
        """Every emoji in every style that has it, before white."""
        for emoji, names in self.emojis:
            held = self.splits.languages.get(emoji.thing)
            others = tuple(language for language in names if language not in (ENGLISH, held))
            for pictures in self.styles:
                if emoji.code in pictures:
                    split = self.splits.of_picture(emoji, pictures.style.name)
                    yield EmojiSample(emoji, names, pictures, WHITE, ENGLISH, others, split)

    def colours(self, sample: EmojiSample) -> list[str]:
        """The colours that a training picture stands before: white, and others that a hash draws."""
        draws = random.Random(f"{self.seed}/{sample.emoji.code}/{sample.pictures.style.name}")
        return [WHITE, *draws.sample(NAMES[1:], self.backgrounds - 1)]


def write_emoji(out: Path, emojis: EmojiSet, *, per_shard: int, per_split: int) -> dict[str, Any]:
    """Write `out/train` and a folder of at most `per_split` pictures a split; returns what was written, as counts.

    The same emoji, styles and seed give the same bytes. ValueError where `out` already holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is not an empty folder: remove it, or write to another one")
    if not 1 <= per_shard <= LARGEST_SHARD:
        raise UserError(f"per_shard={per_shard}: choose a number from 1 to {LARGEST_SHARD}")
    written = {TRAIN: write_shards(out / TRAIN, emojis.train(), emojis.size, per_shard)}
    for split in SPLITS:
        samples = islice(emojis.judged(split), per_split)
        written[split] = write_shards(out / split, samples, emojis.size, per_shard)
    return written


def write_shards(folder: Path, samples: Iterator[EmojiSample], size: int, per_shard: int) -> dict[str, int]:
    """Write shards, each whole or not at all; returns how many pictures there are of each style."""
    folder.mkdir(parents=True)
    counts: Counter[str] = Counter()
    shard = 0
    while some := list(islice(samples, per_shard)):
        path = folder / f"{shard:05d}.tar"
        with files.replacing(path) as part, part.open("wb") as file, tar_writer(file) as tar:
            for place, sample in enumerate(some):
                key = f"{shard:05d}{place:04d}"
                png, text = encoded(sample, size), sample.text(sample.language).encode()
                about = json.dumps(described(key, sample, png, size), ensure_ascii=False).encode()
                write_sample(tar, key, {"png": png, "txt": text, "json": about})
                counts[sample.pictures.style.name] += 1
        shard += 1
    return dict(counts)


def encoded(sample: EmojiSample, size: int) -> bytes:
    """A picture before its colour, as the bytes of a PNG file."""
    image = sample.pictures.draw(sample.emoji.code, size)
    canvas = Image.new("RGBA", image.size, COLOURS[sample.background])
    buffer = io.BytesIO()
    Image.alpha_composite(canvas, image).convert("RGB").save(buffer, format="png", compress_level=6)
    return buffer.getvalue()


def described(key: str, sample: EmojiSample, png: bytes, size: int) -> dict[str, Any]:
    """img2dataset's fields of one sample, what it shows, and whose it is."""
    sides = {"width": size, "height": size, "original_width": size, "original_height": size}
    status = {"url": "", "status": "success", "error_message": None, "exif": "{}"}
    style = sample.pictures.style
    return {
        "key": key,
        "caption": sample.text(sample.language),
        "recaptions": [sample.text(language) for language in sample.others],
        **status,
        **sides,
        "sha256": hashlib.sha256(png).hexdigest(),
        "emoji": sample.emoji.text,
        "code": sample.emoji.code,
        "thing": sample.emoji.thing,
        "name": sample.names[ENGLISH],
        "gender": sample.emoji.gender,
        "tone": sample.emoji.tone,
        "style": style.name,
        "background": sample.background,
        "language": sample.language,
        "split": sample.split,
        "licence": style.licence,
        "attribution": style.attribution,
    }
