"""Pairs of two systems' pictures, the order in which a judge sees them, and the judges' votes in a SQLite file.

The order of the pairs and the picture on the left are a function of judge, seed and pair. A vote is on the disk before
it counts, and is never changed or removed.
"""

import hashlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.generation.gallery import read_manifest, read_picture


@dataclass(frozen=True)
class GalleryPicture:
    """One picture in a folder that `generate` wrote."""

    folder: Path
    file: str
    sha256: str

    def read(self) -> bytes:
        """The PNG's bytes. ValueError where the file has been changed since the votes were begun."""
        return read_picture(self.folder, {"file": self.file, "sha256": self.sha256})


@dataclass(frozen=True)
class PicturePair:
    """The `nth` picture, from 0, that system a and system b drew for a prompt."""

    prompt: str
    nth: int
    a: GalleryPicture
    b: GalleryPicture

    @property
    def key(self) -> str:
        """A hash of prompt and pictures, which does not depend on folders and file names."""
        return hashlib.sha256(json.dumps([self.prompt, self.nth, self.a.sha256, self.b.sha256]).encode()).hexdigest()


def read_pairs(a: Path, b: Path) -> list[PicturePair]:
    """Pair the pictures of each prompt by their order. ValueError where a folder is not finished, a picture was
    changed, or one folder lacks a picture that the other has; the message says what is missing where."""
    if a.resolve() == b.resolve():
        raise UserError(f"a={a} and b={b} are one folder: there is nothing to compare")
    of_a, of_b = pictures(a), pictures(b)
    missing = {b: [key for key in of_a if key not in of_b], a: [key for key in of_b if key not in of_a]}
    if lacking := [
        f"{folder} lacks {len(keys)}, such as picture {keys[0][1] + 1} of {keys[0][0]!r}"
        for folder, keys in missing.items()
        if keys
    ]:
        raise UserError(f"a={a} and b={b} were drawn for other prompts: {'; '.join(lacking)}")
    return [PicturePair(prompt, nth, of_a[prompt, nth], of_b[prompt, nth]) for prompt, nth in of_a]


def pictures(folder: Path) -> dict[tuple[str, int], GalleryPicture]:
    """(prompt, which of its pictures, from 0) -> picture; each file is read once, to find one that was changed."""
    counts: Counter[str] = Counter()
    by_prompt = {}
    for line in read_manifest(folder):
        picture = GalleryPicture(folder, line["file"], line["sha256"])
        picture.read()
        by_prompt[line["prompt"], counts[line["prompt"]]] = picture
        counts[line["prompt"]] += 1
    return by_prompt


System = Literal["a", "b"]


class PresentedPair(NamedTuple):
    """A pair as a judge sees it: with the system whose picture is on the left."""

    pair: PicturePair
    left: System


def presentation(judge: str, seed: int, pairs: Sequence[PicturePair]) -> list[PresentedPair]:
    """The pairs in a judge's own random order, which is the same at any time, so that nothing is stored."""
    order = sorted(pairs, key=lambda pair: hash_bytes("order", seed, judge, pair.key))
    return [PresentedPair(pair, "a" if hash_bytes("side", seed, judge, pair.key)[0] < 128 else "b") for pair in order]


def hash_bytes(what: str, seed: int, judge: str, key: str) -> bytes:
    """32 bytes, as good as random."""
    return hashlib.sha256(json.dumps([what, seed, judge, key]).encode()).digest()


Answer = Literal["a", "b", "equal"]

QUESTIONS = {
    "text": "Which picture matches the text better?",
    "looks": "Which picture looks better?",
}
APPLICATION_ID = 0x6A756467  # "judg": tells our files from other SQLite files
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE IF NOT EXISTS votes (
    id INTEGER PRIMARY KEY,     -- rises with time: of several votes of one judge on one question the last counts
    judge TEXT NOT NULL,
    prompt TEXT NOT NULL,
    nth INTEGER NOT NULL,       -- which of the prompt's pictures, from 0
    a_sha256 TEXT NOT NULL,     -- of the pictures' files
    b_sha256 TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL CHECK (answer IN ('a', 'b', 'equal')),
    on_left TEXT NOT NULL CHECK (on_left IN ('a', 'b')),
    at TEXT NOT NULL            -- UTC
);
CREATE TRIGGER IF NOT EXISTS votes_stay BEFORE UPDATE ON votes
    BEGIN SELECT RAISE(ABORT, 'a vote stays as it was cast'); END;
CREATE TRIGGER IF NOT EXISTS votes_are_kept BEFORE DELETE ON votes
    BEGIN SELECT RAISE(ABORT, 'a vote is not removed'); END;
CREATE VIEW IF NOT EXISTS counting AS SELECT * FROM votes WHERE id IN
    (SELECT max(id) FROM votes GROUP BY judge, prompt, nth, a_sha256, b_sha256, question);
"""
PAIR = "prompt, nth, a_sha256, b_sha256"


class Vote(NamedTuple):
    """A judge's answer to one question on a pair: the system whose picture is better, or equal."""

    judge: str
    prompt: str
    nth: int
    question: str
    answer: Answer
    on_left: System


class Votes:
    """The votes in the SQLite file at `path`, which is created if it is missing; several threads may use one object.

    ValueError where the file is no database of votes, or holds votes on other pictures than those of `pairs`.
    """

    def __init__(self, path: Path, pairs: Sequence[PicturePair]) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = connect(path)
        except sqlite3.DatabaseError as error:
            raise UserError(f"votes={path} cannot be opened: {error}") from error
        refuse_other_pairs(path, set(self._rows(f"SELECT DISTINCT {PAIR} FROM votes")), pairs)

    def cast(self, judge: str, shown: PresentedPair, question: str, answer: Answer) -> None:
        """Add a vote. The same answer again adds nothing: the page sent it twice."""
        pair = shown.pair
        if self.answers(judge, pair).get(question) == answer:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock, self._connection:
            self._connection.execute(
                f"INSERT INTO votes (judge, {PAIR}, question, answer, on_left, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (judge, *row(pair), question, answer, shown.left, now),
            )

    def answers(self, judge: str, pair: PicturePair) -> dict[str, Answer]:
        """Question -> the judge's last answer."""
        where = "WHERE judge = ? AND prompt = ? AND nth = ? AND a_sha256 = ? AND b_sha256 = ?"
        return dict(self._rows(f"SELECT question, answer FROM counting {where}", judge, *row(pair)))

    def done(self, judge: str) -> set[tuple[str, int]]:
        """(prompt, nth) of the pairs on which the judge has answered every question."""
        having = "GROUP BY prompt, nth HAVING count(*) = ?"
        return set(self._rows(f"SELECT prompt, nth FROM counting WHERE judge = ? {having}", judge, len(QUESTIONS)))

    def counted(self) -> list[Vote]:
        """The last vote of each judge on each pair and question, in the order in which they were cast."""
        return [Vote(*row) for row in self._rows(f"SELECT {', '.join(Vote._fields)} FROM counting ORDER BY id")]

    def total(self) -> int:
        """How many votes were cast, including those that a later one has replaced."""
        return self._rows("SELECT count(*) FROM votes")[0][0]

    def close(self) -> None:
        self._connection.close()

    def _rows(self, query: str, *values: str | int) -> list[tuple]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()


def connect(path: Path) -> sqlite3.Connection:
    """ValueError where the file is a database of something else than votes."""
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if not application and not connection.execute("SELECT name FROM sqlite_master").fetchall():
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        elif application != APPLICATION_ID:
            raise UserError(f"votes={path} is a database of something else: choose another file")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def row(pair: PicturePair) -> tuple[str, int, str, str]:
    """A pair as the columns of `PAIR`."""
    return pair.prompt, pair.nth, pair.a.sha256, pair.b.sha256


def refuse_other_pairs(path: Path, voted: set[tuple], pairs: Sequence[PicturePair]) -> None:
    """ValueError where there are votes on other pictures than those of `pairs`."""
    known = {row(pair) for pair in pairs}
    if others := voted - known:
        prompt, nth, *hashes = min(others)
        exchanged = (prompt, nth, *reversed(hashes)) in known
        why = "a and b are exchanged" if exchanged else "they are not the pictures in a and b"
        example = f"such as picture {nth + 1} of {prompt!r}"
        raise UserError(f"votes={path} holds votes on {len(others)} other pairs, {example}: {why}. Choose another file")
