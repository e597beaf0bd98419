"""Samples by their place in a tar: what is counted can be read, what is not wanted is not, what is lost is told."""

import io
import random
import tarfile

import pytest
from fixtures.shards import sample, write_folder, write_tar

from open_kandinsky.data.tar import opening, reader
from open_kandinsky.data.tar.index import ShardIndex
from open_kandinsky.data.tar.reader import CUT, GONE, UNREACHABLE, TarShards
from open_kandinsky.data.tar.sample import NoSidecars
from open_kandinsky.data.tar.stats import SampleStats, stats_from_plain


def shards_of(*urls, counts=None):
    counts = [reader.count(url).count for url in urls] if counts is None else counts
    return TarShards(ShardIndex(list(urls), counts), NoSidecars())


def read(shards, shard, wanted):
    tally = SampleStats(max_bad_share=1.0)
    return list(shards.read(shard, wanted, tally)), tally


def lost(tally):
    return {name: reason.count for name, reason in tally.reasons.items()}


def keys(found):
    return {at: raw.key for at, raw in found}


def write_members(path, members, form=tarfile.GNU_FORMAT):
    """`members`: (name, data) in order."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def test_every_choice_of_samples(tmp_path):
    url = write_folder(tmp_path / "a", [6]) + "/00000.tar"
    shards = shards_of(url)
    assert list(shards.counts) == [6]
    everything, _ = read(shards, 0, range(6))
    assert keys(everything) == {at: f"00000/00000{at:04d}" for at in range(6)}
    for bits in range(2**6):
        wanted = [at for at in range(6) if bits >> at & 1]
        found, tally = read(shards, 0, wanted)
        assert found == [everything[at] for at in wanted]
        assert tally.clean and tally.seen == 0, "the reader of samples counts the good ones, when they are decoded"


def test_bodies_that_are_not_wanted_are_not_read(tmp_path, monkeypatch):
    """A file that knows which bytes were read: of 40 large samples, the 3 that are wanted, and headers."""
    big = random.Random(0).randbytes(200_000)
    url = write_tar(tmp_path / "x.tar", {f"{at:02d}": {"jpg": big, "txt": b"c"} for at in range(40)})
    taken = []

    class Watched(io.FileIO):
        def readinto(self, buffer):
            taken.append(super().readinto(buffer))
            return taken[-1]

    for module in (opening, reader):
        monkeypatch.setattr(module, "open_url", lambda url: io.BufferedReader(Watched(url), 8192))
    assert reader.count(url).count == 40
    headers = sum(taken)
    assert headers < 40 * 5 * 8192, "two headers and two last bytes a sample, in blocks"
    taken.clear()
    assert len(read(shards_of(url, counts=[40]), 0, [3, 20, 21])[0]) == 3
    assert sum(taken) < 3 * (len(big) + 8192) + headers * 22 / 40 + 8192


def test_nothing_is_read_after_the_last_one_wanted(tmp_path):
    url = write_folder(tmp_path / "a", [6]) + "/00000.tar"
    with open(url, "r+b") as file:
        file.seek(4 * 3 * 1024)  # three members of a header and a block each
        file.truncate()
    shards = shards_of(url, counts=[6])
    found, tally = read(shards, 0, [0, 2])
    assert keys(found).keys() == {0, 2} and tally.clean


def test_counting_and_reading_agree_wherever_a_tar_is_cut(tmp_path):
    """Also for the index of the whole tar, read when it is cut: every sample is given or tallied, none twice."""
    url = write_folder(tmp_path / "a", [4]) + "/00000.tar"
    body = open(url, "rb").read()
    with tarfile.open(url) as archive:
        ends = [member.offset_data + member.size for member in archive.getmembers()]
    cut = tmp_path / "00000.tar"
    for at in sorted({*range(0, len(body), 1021), *(end + by for end in ends for by in (-1, 0, 1))}):
        cut.write_bytes(body[:at])
        count = reader.count(str(cut))
        assert (count.problem is None) == (at > -(-ends[-1] // 512) * 512 + 511), f"cut at {at}"
        now, then = shards_of(str(cut)), shards_of(str(cut), counts=[4])
        found, tally = read(now, 0, range(count.count))
        assert len(found) + tally.bad == count.count and tally.bad <= 1
        older, older_tally = read(then, 0, range(4))
        assert older == found, f"cut at {at}"
        assert lost(older_tally) == ({CUT: 4 - len(found)} if len(found) < 4 else {}), f"cut at {at}"


def test_what_the_file_has_no_longer(tmp_path):
    url = write_folder(tmp_path / "a", [3]) + "/00000.tar"
    found, tally = read(shards_of(url, counts=[5]), 0, [1, 3, 4])
    assert keys(found).keys() == {1} and lost(tally) == {GONE: 2}
    assert tally.seen == 2 and "the index knows 5" in tally.report()
    found, tally = read(shards_of(str(tmp_path / "a" / "9.tar"), counts=[5]), 0, range(5))
    assert (found, lost(tally)) == ([], {GONE: 5})


def test_a_shard_that_cannot_be_reached(monkeypatch):
    def refuse(url):
        raise OSError("no route to host")

    monkeypatch.setattr(reader, "open_url", refuse)
    assert lost(read(shards_of("s3://b/0.tar", counts=[7]), 0, [2, 3])[1]) == {UNREACHABLE: 2}


def test_what_may_not_be_read_stops(monkeypatch):
    def refuse(url):
        raise PermissionError(13, "no credentials", url)

    monkeypatch.setattr(reader, "open_url", refuse)
    with pytest.raises(PermissionError, match="no credentials: 's3://b/0.tar'"):
        read(shards_of("s3://b/0.tar", counts=[7]), 0, [2])


@pytest.mark.parametrize("at", range(1, 12))
def test_a_garbled_header_ends_what_can_be_read(tmp_path, at):
    """What is before it is given; even where zeros follow, which look like the end."""
    url = write_tar(tmp_path / "x.tar", {f"{row}": {"png": bytes(600), "txt": b"c", "json": b"{}"} for row in range(4)})
    with tarfile.open(url) as archive:
        place = archive.getmembers()[at].offset
    with open(url, "r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 512)
    counted = reader.count(url)
    assert counted.count == -(-at // 3) and f"byte {place}" in counted.problem
    found, tally = read(shards_of(url, counts=[4]), 0, range(4))
    assert len(found) == at // 3 + (at % 3 == 2), "without its json a sample is whole"
    assert lost(tally) == ({CUT: 4 - len(found)} if len(found) < 4 else {})


@pytest.mark.parametrize("size", [-512, -1024, 2**62])
def test_a_size_that_cannot_be(tmp_path, size):
    """Sizes in base 256 can be negative: a reader that believes them goes round for ever."""
    url = write_folder(tmp_path / "a", [3]) + "/00000.tar"
    with tarfile.open(url) as archive:
        member = archive.getmembers()[3]
    data = bytearray(open(url, "rb").read())
    header = bytearray(data[member.offset : member.offset + 512])
    header[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[member.offset : member.offset + 512] = header
    open(url, "wb").write(data)
    assert reader.count(url).problem is not None
    assert lost(read(shards_of(url, counts=[3]), 0, range(3))[1]) == {CUT: 2}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(tmp_path, form):
    deep = "/".join(["folder"] * 20) if form == tarfile.USTAR_FORMAT else "/".join(["a long folder"] * 30)
    names = [f"{deep}/{at}" for at in range(3)]
    members = [(f"{name}.{kind}", data) for at, name in enumerate(names) for kind, data in sample(at).items()]
    url = write_members(tmp_path / "x.tar", members, form)
    shards = shards_of(url)
    assert list(shards.counts) == [3]
    found, _ = read(shards, 0, [0, 2])
    assert keys(found) == {0: f"x/{names[0]}", 2: f"x/{names[2]}"}
    assert found[1][1].members == sample(2)


def test_what_belongs_to_no_sample(tmp_path):
    """Other files, folders, links, names without ending, upper case, empty members, and a key that comes back."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [("folder", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("pipe.png", tarfile.FIFOTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            archive.addfile(info)
        rows = [("README", b"x"), ("a.JPG", b"1"), ("a.cls", b"7"), ("a.txt", b"2"), ("a.txt", b"twice")]
        rows += [("b.jpg", b""), ("notes.md", b"between"), ("b.txt", b"3"), ("a.jpg", b"again"), ("c.seg.png", b"4")]
        for name, data in rows:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    shards = shards_of(str(path))
    found, _ = read(shards, 0, range(9))
    assert [(at, raw.key, raw.members) for at, raw in found] == [
        (0, "x/a", {"jpg": b"1", "txt": b"2"}),
        (1, "x/b", {"jpg": b"", "txt": b"3"}),
        (2, "x/a", {"jpg": b"again"}),
    ]
    assert list(shards.counts) == [3]


def test_an_empty_tar(tmp_path):
    url = write_members(tmp_path / "x.tar", [])
    assert reader.count(url) == (0, None)
    assert lost(read(shards_of(url, counts=[2]), 0, [0, 1])[1]) == {GONE: 2}


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, b"\x1f\x8b broken gzip"])
def test_no_tar(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    counted = reader.count(str(tmp_path / "x.tar"))
    assert counted.count == 0 and counted.problem
    assert lost(read(shards_of(str(tmp_path / "x.tar"), counts=[2]), 0, [1])[1]) == {CUT: 1}


def test_hostile_bytes_end_in_a_tally(tmp_path):
    """Bits flipped anywhere in the headers: every sample is given or tallied, and nothing is raised."""
    url = write_folder(tmp_path / "a", [4]) + "/00000.tar"
    body, draws = open(url, "rb").read(), random.Random(0)
    with tarfile.open(url) as archive:
        places = [member.offset for member in archive.getmembers()]
    for _ in range(100):
        data = bytearray(body)
        for _ in range(draws.randint(1, 3)):
            data[draws.choice(places) + draws.randrange(512)] = draws.randrange(256)
        (tmp_path / "00000.tar").write_bytes(data)
        found, tally = read(shards_of(str(tmp_path / "00000.tar"), counts=[4]), 0, range(4))
        assert len(found) + tally.bad == 4


# --- the tally ---


def test_filtered_samples_are_not_bad():
    tally = SampleStats(max_bad_share=0.1)
    for at in range(90):
        tally.add("filtered out: similarity", key=f"{at}", shard="s", detail="0.1")
    for _ in range(9):
        tally.good()
    tally.add("missing caption", key="x", shard="s")
    tally.check()
    assert (tally.seen, tally.bad, tally.filtered) == (100, 1, 90)
    assert tally.report().startswith("1 of 100 samples cannot be used, 90 are filtered out")
    tally.add("missing caption", key="y", shard="s")
    with pytest.raises(ValueError, match="2 of 101"):
        tally.check()


def test_tallies_join_and_go_through_a_checkpoint():
    one, two = SampleStats(max_bad_share=0.5), SampleStats(max_bad_share=0.5)
    one.add("a", key="1", shard="s", detail="first", count=3)
    one.remark("missing side file", shard="s")
    two.add("a", key="2", shard="t", detail="second")
    two.remark("missing side file", shard="s")
    two.remark("missing side file", shard="t")
    two.good()
    one.merge(two)
    again = stats_from_plain(one.plain(), max_bad_share=0.5)
    assert again.plain() == one.plain() and again.report() == one.report()
    assert (again.seen, again.bad, again.reasons["a"].keys, again.reasons["a"].detail) == (5, 4, ["1", "2"], "first")
    assert "missing side file: 2 shard(s) (s, t)" in again.report()
    assert not again.clean and SampleStats(max_bad_share=0.0).clean
