"""Two systems' pictures for the same prompts, as pairs.

In which order a judge sees the pairs, and which picture is on the left: a function of judge, seed and pair.

Votes in a SQLite file: each on the disk before it counts, none ever changed or removed.
"""

import hashlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.generation.gallery import read_manifest, read_picture


@dataclass(frozen=True)
class Shown:
    """One picture of a folder of `generate`."""

    folder: Path
    file: str
    sha256: str

    def read(self) -> bytes:
        """ValueError where it is not the picture any more that the votes were begun on."""
        return read_picture(self.folder, {"file": self.file, "sha256": self.sha256})


@dataclass(frozen=True)
class PicturePair:
    """The `nth` picture, from 0, that system a and system b drew for a prompt."""

    prompt: str
    nth: int
    a: Shown
    b: Shown

    @property
    def key(self) -> str:
        """What it shows, and nothing of where that lies."""
        return hashlib.sha256(json.dumps([self.prompt, self.nth, self.a.sha256, self.b.sha256]).encode()).hexdigest()


def read_pairs(a: Path, b: Path) -> list[PicturePair]:
    """Pictures of one prompt are paired by their order. ValueError where a folder is not finished, a picture was
    changed, or one folder lacks what the other shows; the message says what is missing where."""
    if a.resolve() == b.resolve():
        raise UserError(f"a={a} and b={b} are one folder: there is nothing to compare")
    of_a, of_b = pictures(a), pictures(b)
    lacking = [lacks(b, [key for key in of_a if key not in of_b]), lacks(a, [key for key in of_b if key not in of_a])]
    if any(lacking):
        raise UserError(f"a={a} and b={b} were drawn for other prompts: {'; '.join(filter(None, lacking))}")
    return [PicturePair(prompt, nth, of_a[prompt, nth], of_b[prompt, nth]) for prompt, nth in of_a]


def pictures(folder: Path) -> dict[tuple[str, int], Shown]:
    """(prompt, which of its pictures, from 0) -> picture, each of them read once and found to be as it was drawn."""
    seen: Counter[str] = Counter()
    found = {}
    for line in read_manifest(folder):
        picture = Shown(folder, line["file"], line["sha256"])
        picture.read()
        found[line["prompt"], seen[line["prompt"]]] = picture
        seen[line["prompt"]] += 1
    return found


def lacks(folder: Path, keys: Iterable[tuple[str, int]]) -> str:
    """What to say of missing pictures; nothing where none is."""
    missing = list(keys)
    if not missing:
        return ""
    prompt, nth = missing[0]
    return f"{folder} lacks {len(missing)}, such as picture {nth + 1} of {prompt!r}"


System = Literal["a", "b"]


class Presented(NamedTuple):
    """A pair, and the system whose picture is on the left."""

    pair: PicturePair
    left: System


def presented(judge: str, seed: int, pairs: Sequence[PicturePair]) -> list[Presented]:
    """Shuffled for each judge anew, and the same at any time: nothing of it has to be stored."""
    order = sorted(pairs, key=lambda pair: drawn("order", seed, judge, pair.key))
    return [Presented(pair, "a" if drawn("side", seed, judge, pair.key)[0] < 128 else "b") for pair in order]


def drawn(what: str, seed: int, judge: str, key: str) -> bytes:
    """32 bytes, as good as random."""
    return hashlib.sha256(json.dumps([what, seed, judge, key]).encode()).digest()


Answer = Literal["a", "b", "equal"]

QUESTIONS = {
    "text": "Which picture matches the text better?",
    "looks": "Which picture looks better?",
}
OURS = 0x6A756467  # "judg": by which SQLite knows our files from others'
SCHEMA = f"""
PRAGMA application_id = {OURS};
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
    """Which system's picture of a pair a judge found better, in answer to one question, and how they saw it."""

    judge: str
    prompt: str
    nth: int
    question: str
    answer: Answer
    on_left: System


class Votes:
    """The file at `path`, made if it is not there. One of them may serve several threads.

    ValueError where the file is no database of votes, or holds votes on other pictures than those of `pairs`.
    """

    def __init__(self, path: Path, pairs: Sequence[PicturePair]) -> None:
        self.path = path
        self._one_at_a_time = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = opened(path)
        except sqlite3.DatabaseError as error:
            raise UserError(f"votes={path} cannot be opened: {error}") from error
        refuse_other_pairs(path, set(self._rows(f"SELECT DISTINCT {PAIR} FROM votes")), pairs)

    def cast(self, judge: str, shown: Presented, question: str, answer: Answer) -> None:
        """Add a vote. The same answer again adds nothing: it comes from a page that asked twice."""
        pair = shown.pair
        if self.answers(judge, pair).get(question) == answer:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._one_at_a_time, self._connection:
            self._connection.execute(
                f"INSERT INTO votes (judge, {PAIR}, question, answer, on_left, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (judge, *row(pair), question, answer, shown.left, now),
            )

    def answers(self, judge: str, pair: PicturePair) -> dict[str, Answer]:
        """question -> what counts, of the questions that the judge has answered."""
        where = "WHERE judge = ? AND prompt = ? AND nth = ? AND a_sha256 = ? AND b_sha256 = ?"
        return dict(self._rows(f"SELECT question, answer FROM counting {where}", judge, *row(pair)))

    def done(self, judge: str) -> set[tuple[str, int]]:
        """(prompt, nth) of the pairs of which the judge has answered every question."""
        having = "GROUP BY prompt, nth HAVING count(*) = ?"
        return set(self._rows(f"SELECT prompt, nth FROM counting WHERE judge = ? {having}", judge, len(QUESTIONS)))

    def counting(self) -> list[Vote]:
        """The votes that count, in the order in which they were cast."""
        fields = ", ".join(Vote._fields)
        return [Vote(*found) for found in self._rows(f"SELECT {fields} FROM counting ORDER BY id")]

    def cast_in_all(self) -> int:
        """How many were cast, those included that a later one of the same judge has replaced."""
        return self._rows("SELECT count(*) FROM votes")[0][0]

    def close(self) -> None:
        self._connection.close()

    def _rows(self, query: str, *values: str | int) -> list[tuple]:
        with self._one_at_a_time:
            return self._connection.execute(query, values).fetchall()


def opened(path: Path) -> sqlite3.Connection:
    """ValueError where there is a database already, and none of votes."""
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    with closed_on_failure(connection):
        (application,), tables = (
            connection.execute("PRAGMA application_id").fetchone(),
            connection.execute("SELECT name FROM sqlite_master").fetchall(),
        )
        if not application and not tables:
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        elif application != OURS:
            raise UserError(f"votes={path} is a database of something else: choose another file")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def row(pair: PicturePair) -> tuple[str, int, str, str]:
    """A pair as the columns of `PAIR`."""
    return pair.prompt, pair.nth, pair.a.sha256, pair.b.sha256


def refuse_other_pairs(path: Path, voted: set[tuple], pairs: Sequence[PicturePair]) -> None:
    others = voted - {row(pair) for pair in pairs}
    if not others:
        return
    prompt, nth, *hashes = min(others)
    turned = (prompt, nth, *reversed(hashes)) in {row(pair) for pair in pairs}
    why = "a and b are exchanged" if turned else "they are not the pictures in a and b"
    named = f"such as picture {nth + 1} of {prompt!r}"
    raise UserError(f"votes={path} holds votes on {len(others)} other pairs, {named}: {why}. Choose another file")
