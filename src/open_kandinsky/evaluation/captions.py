"""Caption lists: the texts that a system draws for a score on COCO. A rule makes a list, and a list has a hash.

A random choice takes the first n in the order of SHA-256 of "{seed}:{id}" (UTF-8, decimal), so that it depends on no
library, and a shorter list is the beginning of a longer one.
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
from open_kandinsky.data.coco.folder import first_few

IMAGE_ID = re.compile(r"0*(\d+)(?:_mscoco_\d+)?")


class Caption(NamedTuple):
    """Text number `index` of a list. `image_id` is None where a published list does not name the image."""

    index: int
    image_id: int | None
    text: str


@dataclass(frozen=True, kw_only=True)
class OnePerImage:
    """One caption of each of `n` images, both chosen at random without replacement."""

    n: int
    seed: int

    def __call__(self, coco: Coco) -> list[Caption]:
        """In random order. ValueError where fewer images have captions."""
        refuse_more(self.n, len(coco.captions_of), "images with captions", coco.source)
        image_ids = draw(coco.captions_of, self.n, self.seed)
        return listed((image_id, self.choose(coco.captions_of[image_id])) for image_id in image_ids)

    def choose(self, captions: Sequence[CocoCaption]) -> str:
        texts = {caption.id: caption.text for caption in captions}
        return texts[draw(texts, 1, self.seed)[0]]


@dataclass(frozen=True, kw_only=True)
class AnyCaption:
    """`n` of all captions, chosen at random without replacement; an image may have several of them."""

    n: int
    seed: int

    def __call__(self, coco: Coco) -> list[Caption]:
        """In random order. ValueError where there are fewer."""
        by_id = {caption.id: caption for caption in coco.captions}
        refuse_more(self.n, len(by_id), "captions", coco.source)
        return listed(by_id[id][1:] for id in draw(by_id, self.n, self.seed))


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A published table with an image id and a caption in each row, in its order; `source` says where to get it.

    An id is COCO's number or begins with it, as DALL-Eval's `346904_mscoco_0`. Texts are the table's, without white
    space at their ends.

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
        """ValueError for a file that is missing or lacks a column, and for an image that COCO does not have."""
        reader = csv.DictReader(io.StringIO(read_text(self.file, self.source), newline=""), delimiter=self.separator)
        for column in (self.image_id_column, self.caption_column):
            require(column, reader.fieldnames or [], self.file)
        rows = [self.row(row, f"{self.file}, line {reader.line_num}") for row in reader]
        if stray := [image_id for image_id, _ in rows if image_id not in coco.by_id]:
            problem = f"{len(stray):,} of {len(rows):,} rows name images that {coco.source} does not have"
            raise UserError(f"{self.file}: {problem} ({first_few(stray)}); is it a list of val2014?")
        return listed(rows)

    def row(self, row: dict[str, str | None], where: str) -> tuple[int, str]:
        """Image id and caption. ValueError, which says `where`, for a row without them."""
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
        """ValueError for a file that is missing or has fewer lines."""
        lines = read_text(self.file, self.source).splitlines()
        refuse_more(self.n, len(lines), "lines", self.file)
        return listed((None, line.strip()) for line in lines[: self.n])


def sha256(captions: Iterable[Caption]) -> str:
    """A hash of the lines `image id, text`, a tab between, in the order of the list; UTF-8. A missing id is empty."""
    lines = (f"{'' if caption.image_id is None else caption.image_id}\t{caption.text}\n" for caption in captions)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def draw(ids: Iterable[int], n: int, seed: int) -> list[int]:
    """The first `n` in the order of SHA-256 of "{seed}:{id}"."""
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}:{id}".encode()).digest())[:n]


def refuse_more(n: int, total: int, what: str, where: str | Path) -> None:
    """ValueError unless 1 <= n <= total."""
    if not 1 <= n <= total:
        raise UserError(f"n={n}: {where} has {total:,} {what}; ask for 1 to {total:,}")


def listed(pairs: Iterable[tuple[int | None, str]]) -> list[Caption]:
    """Number (image id, text) pairs."""
    return [Caption(index, image_id, text) for index, (image_id, text) in enumerate(pairs)]


def read_text(file: str | Path, source: str) -> str:
    """ValueError, which says where to get the file, where it is missing or not in UTF-8."""
    if not Path(file).is_file():
        raise UserError(f"{file}: no such file; this caption list is published, get it from {source}")
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text in UTF-8 ({error}); get it from {source}") from error


def require(column: str, columns: Sequence[str], file: str | Path) -> None:
    """ValueError, with the nearest name, unless `columns` has the column."""
    if column not in columns:
        near = nearest(column, columns, cutoff=0.0)
        remedy = f"nearest {near!r}; it has {', '.join(columns)}" if near else "it has none"
        raise UserError(f"{file}: no column {column!r}; {remedy}. Is the separator right?")
