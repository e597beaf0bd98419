"""Caption lists: which texts a system is asked to draw. A rule makes one from COCO; a list has a hash of its own.

What is drawn at random is put in the order of SHA-256 of "{seed}:{id}" (UTF-8, decimal) and the first n are taken, so
that it depends on no library, and so that a shorter list is the beginning of a longer one.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.data.coco import Coco, CocoCaption
from open_kandinsky.data.coco.folder import named

IMAGE_ID = re.compile(r"0*(\d+)(?:_mscoco_\d+)?")


class Caption(NamedTuple):
    """The `index`th text of a list. `image_id` is None where a published list does not say which image it is of."""

    index: int
    image_id: int | None
    text: str


@dataclass(frozen=True, kw_only=True)
class OnePerImage:
    """`n` images without replacement, of each one of its captions: the first in the order of the seed."""

    n: int
    seed: int

    def __call__(self, coco: Coco) -> list[Caption]:
        """In the order drawn. ValueError where fewer images have captions."""
        of = coco.captions_of
        refuse_more(self.n, len(of), "images with captions", coco.source)
        return listed((image_id, self.one(of[image_id])) for image_id in drawn(of, self.n, self.seed))

    def one(self, captions: Sequence[CocoCaption]) -> str:
        texts = {caption.id: caption.text for caption in captions}
        return texts[drawn(texts, 1, self.seed)[0]]


@dataclass(frozen=True, kw_only=True)
class AnyCaption:
    """`n` of all captions without replacement, so that an image may be there more than once."""

    n: int
    seed: int

    def __call__(self, coco: Coco) -> list[Caption]:
        """In the order drawn. ValueError where there are fewer."""
        by_id = {caption.id: caption for caption in coco.captions}
        refuse_more(self.n, len(by_id), "captions", coco.source)
        return listed((by_id[id].image_id, by_id[id].text) for id in drawn(by_id, self.n, self.seed))


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A published table with an image id and a caption a row, in its order; `source` says where to get it.

    An id may be COCO's number or begin with it, as in DALL-Eval's `346904_mscoco_0`. Texts are the table's, not COCO's,
    but for white space at the ends.

    - T2IBenchmark (MS-COCO_val2014_30k_captions.csv): image_id, text; commas
    - DALL-Eval (uid_caption.csv): uid, caption; commas
    - MLPerf (val2014_30k.tsv): image_id, caption, and id; tabs. Drawn by pandas with seed 2023, one caption an image,
      and sorted by caption id; newlines within a caption are left out
    """

    file: str | Path
    image_id_column: str
    caption_column: str
    separator: str
    source: str

    def __call__(self, coco: Coco) -> list[Caption]:
        """ValueError for a file that is not there or lacks a column, and for an image that COCO does not have."""
        reader = csv.DictReader(io.StringIO(text_of(self.file, self.source), newline=""), delimiter=self.separator)
        for column in (self.image_id_column, self.caption_column):
            require(column, reader.fieldnames or [], self.file)
        rows = [self.row(row, f"{self.file}, line {reader.line_num}") for row in reader]
        stray = [image_id for image_id, _ in rows if image_id not in coco.by_id]
        if stray:
            told = f"{len(stray):,} of {len(rows):,} rows name images that {coco.source} does not have"
            raise UserError(f"{self.file}: {told} ({named(stray)}); is it a list of val2014?")
        return listed(rows)

    def row(self, row: dict[str, str | None], where: str) -> tuple[int, str]:
        image_id = IMAGE_ID.fullmatch((row[self.image_id_column] or "").strip())
        if image_id is None:
            raise UserError(f"{where}: {self.image_id_column} {row[self.image_id_column]!r} is no image id")
        caption = (row[self.caption_column] or "").strip()
        if not caption:
            raise UserError(f"{where}: no {self.caption_column}")
        return int(image_id[1]), caption


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The first `n` lines of a published text; `source` says where to get it.

    GigaGAN's captions.txt: line k is the caption of the kth of its pictures, and no image is named.
    """

    file: str | Path
    n: int
    source: str

    def __call__(self, coco: Coco) -> list[Caption]:
        """ValueError for a file that is not there, and where it has fewer lines."""
        lines = text_of(self.file, self.source).splitlines()
        refuse_more(self.n, len(lines), "lines", self.file)
        return listed((None, line.strip()) for line in lines[: self.n])


def sha256(captions: Iterable[Caption]) -> str:
    """Over the lines `image id, text`, a tab between, in the order of the list; UTF-8. No image id is no character."""
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(f"{'' if caption.image_id is None else caption.image_id}\t{caption.text}\n".encode())
    return digest.hexdigest()


def drawn(ids: Iterable[int], n: int, seed: int) -> list[int]:
    """The first `n` in the order of SHA-256 of "{seed}:{id}"."""
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())[:n]


def refuse_more(n: int, there: int, what: str, where: str | Path) -> None:
    if not 1 <= n <= there:
        raise UserError(f"n={n}: {where} has {there:,} {what}; ask for 1 to {there:,}")


def listed(pairs: Iterable[tuple[int | None, str]]) -> list[Caption]:
    return [Caption(index, image_id, text) for index, (image_id, text) in enumerate(pairs)]


def text_of(file: str | Path, source: str) -> str:
    if not Path(file).is_file():
        raise UserError(f"{file}: no such file; this caption list is published, get it from {source}")
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text in UTF-8 ({error}); get it from {source}") from error


def require(column: str, columns: Sequence[str], file: str | Path) -> None:
    if column not in columns:
        near = nearest(column, columns, cutoff=0.0)
        remedy = f"nearest {near!r}; it has {', '.join(columns)}" if near else "it has none"
        raise UserError(f"{file}: no column {column!r}; {remedy}. Is the separator right?")
