"""A vote stays: on the disk at once, never changed, and only beside votes on the same pictures."""

import sqlite3

import pytest
from fixtures.compared import PROMPTS, gallery

from open_kandinsky.evaluation.human.votes import Votes, presentation, read_pairs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return [gallery(folder / name, hue) for name, hue in (("a", 250), ("b", 90), ("c", 30))]


@pytest.fixture
def pairs(folders):
    return read_pairs(*folders[:2])


@pytest.fixture
def votes(tmp_path, pairs):
    votes = Votes(tmp_path / "new" / "votes.sqlite", pairs)
    yield votes
    votes.close()


def test_a_vote_is_in_the_file_with_all_that_belongs_to_it(votes, pairs):
    shown = presentation("anna", 0, pairs)[0]
    votes.cast("anna", shown, "text", "equal")
    with sqlite3.connect(votes.path) as other:
        other.row_factory = sqlite3.Row
        (stored,) = map(dict, other.execute("SELECT * FROM votes"))
        assert other.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    at = stored.pop("at")
    assert at.endswith("+00:00") and at[10] == "T"
    hashes = {"a_sha256": shown.pair.a.sha256, "b_sha256": shown.pair.b.sha256}
    seen = {"id": 1, "judge": "anna", "prompt": shown.pair.prompt, "nth": shown.pair.nth, "on_left": shown.left}
    assert stored == seen | hashes | {"question": "text", "answer": "equal"}


def test_the_last_answer_counts_and_the_first_is_kept(votes, pairs):
    shown = presentation("anna", 0, pairs)[0]
    for answer in ("a", "a", "b", "a"):
        votes.cast("anna", shown, "text", answer)
    votes.cast("anna", shown, "looks", "b")
    votes.cast("ben", shown, "text", "equal")
    assert votes.answers("anna", shown.pair) == {"text": "a", "looks": "b"}
    assert [(v.judge, v.question, v.answer) for v in votes.counted()] == [
        ("anna", "text", "a"),
        ("anna", "looks", "b"),
        ("ben", "text", "equal"),
    ]
    assert votes.total() == 5  # the second "a" was the same vote again


def test_a_pair_is_done_with_its_last_question(votes, pairs):
    shown = presentation("anna", 0, pairs)[0]
    votes.cast("anna", shown, "text", "a")
    votes.cast("anna", shown, "text", "b")
    assert votes.done("anna") == set()
    votes.cast("anna", shown, "looks", "b")
    assert votes.done("anna") == {(shown.pair.prompt, shown.pair.nth)} and votes.done("ben") == set()


@pytest.mark.parametrize("statement", ["DELETE FROM votes", "UPDATE votes SET answer = 'b'"])
def test_not_even_by_hand_is_a_vote_changed(votes, pairs, statement):
    votes.cast("anna", presentation("anna", 0, pairs)[0], "text", "a")
    with sqlite3.connect(votes.path) as other, pytest.raises(sqlite3.IntegrityError, match="a vote"):
        other.execute(statement)


def test_votes_on_other_pictures_are_refused(votes, folders, pairs):
    votes.cast("anna", presentation("anna", 0, pairs)[0], "text", "a")
    with pytest.raises(ValueError, match="votes on 1 other pairs, such as .*: they are not the pictures in a and b"):
        Votes(votes.path, read_pairs(folders[0], folders[2]))
    with pytest.raises(ValueError, match="a and b are exchanged"):
        Votes(votes.path, read_pairs(folders[1], folders[0]))


def test_a_study_may_be_made_longer(votes, pairs, tmp_path):
    votes.cast("anna", presentation("anna", 0, pairs)[0], "text", "a")
    more = [gallery(tmp_path / name, hue, prompts=[*PROMPTS, "a cat"]) for name, hue in (("a", 250), ("b", 90))]
    longer = Votes(votes.path, read_pairs(*more))
    assert len(longer.counted()) == 1
    longer.close()


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, pairs):
    text, database = tmp_path / "text.sqlite", tmp_path / "theirs.sqlite"
    text.write_text("no database, but a text that somebody needs, and longer than a header of a database\n" * 9)
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE votes (id)")
    before = text.read_bytes(), database.read_bytes()
    with pytest.raises(ValueError, match="text.sqlite cannot be opened: file is not a database"):
        Votes(text, pairs)
    with pytest.raises(ValueError, match="a database of something else"):
        Votes(database, pairs)
    with pytest.raises(ValueError, match="cannot be opened"):
        Votes(tmp_path, pairs)
    assert (text.read_bytes(), database.read_bytes()) == before
