"""Tars that a disk spoilt or a stranger made: every sample is given or counted, in bounded memory and time."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import time

import pytest
from fixtures.limited import limited, limits_hold
from fixtures.shards import sample, write_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_kandinsky.config import compose
from open_kandinsky.core.failures import message
from open_kandinsky.data.tar import reader
from open_kandinsky.data.tar.index import ShardIndex
from open_kandinsky.data.tar.reader import raw_samples, read_samples
from open_kandinsky.data.tar.sample import NoSidecars
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.precompute import precompute

BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PACKED = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def written(rows, form=tarfile.GNU_FORMAT):
    """The bytes of a tar of so many samples, and the places of its headers and their ends."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=form) as archive:
        for at in range(rows):
            for kind, data in sample(at).items():
                info = tarfile.TarInfo(f"{at:04d}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with tarfile.open(fileobj=io.BytesIO(held.getvalue())) as archive:
        members = archive.getmembers()
    return held.getvalue(), [m.offset_data - 512 for m in members], members[-1].offset_data + 512


def read(path):
    """Keys of what is given, and how many samples count as bad, read from first to last."""
    tally = SampleStats(max_bad_share=1.0)
    return [raw.key for raw in raw_samples([str(path)], tally)], tally


# ---- a block that is lost


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_each_zeroed_header_of_thirty_samples_is_told_and_counted(tmp_path, blocks):
    """A lone header, one with its body, and one with the header after it: all look like the end."""
    body, headers, end = written(30)
    path = tmp_path / "x.tar"
    for place in headers[:-1]:
        spoilt = bytearray(body)
        spoilt[place : place + 512 * blocks] = bytes(512 * blocks)
        path.write_bytes(spoilt)
        found, tally = read(path)
        (reason,) = tally.reasons.values()
        assert len(found) + tally.bad == 30, f"header at {place}"
        assert found == [f"x/{at:04d}" for at in range(len(found))]
        assert place == 0 or f"zeros at byte {place}, and more after them" in reason.detail
        assert reader.count(str(path)).problem is not None


def test_an_end_is_told_from_a_hole(tmp_path):
    body, _, end = written(3)
    path = tmp_path / "x.tar"
    for whole in (body, body[: end + 512], body[: end + 1024], body + bytes(9 * 10240)):
        path.write_bytes(whole)
        found, tally = read(path)
        assert len(found) == 3 and tally.clean
    for more in (body + body, body + b"x", body + bytes(2 << 20)):
        path.write_bytes(more)
        assert "more after them" in reader.count(str(path)).problem and len(read(path)[0]) == 3
    path.write_bytes(body + body)
    assert read(path)[1].bad == 3, "tars that were put one behind the other are one tar and a rest"


def test_what_img2dataset_counted_and_is_not_there_is_told(tmp_path, system):
    """Beside the shard; its tar ends as it should, or is cut."""
    url = write_tar(tmp_path / "set" / "00000.tar", {f"{at:03d}": sample(at) for at in range(6)})
    (tmp_path / "set" / "00000_stats.json").write_text(json.dumps({"successes": 8}))
    paths = [f"urls='{tmp_path}/set'", f"out='{tmp_path}/out'", f"clip='{system}'", "max_bad_share=0.5"]
    out = precompute(compose.compose("precompute", paths))
    assert json.loads((out / "manifest.json").read_text())["skipped"] == {"seen": 8, "bad": 2}
    body = open(url, "rb").read()
    open(url, "wb").write(body[:4000])
    paths[1] = f"out='{tmp_path}/cut'"
    with pytest.raises(ValueError, match=r"7 of 8 samples cannot be used(.|\n)*cut before byte") as refusal:
        precompute(compose.compose("precompute", paths))
    assert message(refusal.value)


def test_precompute_of_a_shard_with_a_hole_does_not_go_on_in_silence(tmp_path, system):
    body, headers, _ = written(30)
    (tmp_path / "00000.tar").write_bytes(body[: headers[9]] + bytes(512) + body[headers[9] + 512 :])
    paths = [f"urls='{tmp_path}'", f"out='{tmp_path}/out'", f"clip='{system}'"]
    with pytest.raises(ValueError, match=r"27 of 30 samples cannot be used(.|\n)*zeros at byte") as refusal:
        precompute(compose.compose("precompute", paths))
    assert message(refusal.value)
    out = precompute(compose.compose("precompute", [*paths, "max_bad_share=0.95"]))
    assert json.loads((out / "manifest.json").read_text())["skipped"] == {"seen": 30, "bad": 27}


def test_files_that_are_not_neighbours_are_told_so(tmp_path):
    """As `tar cf x.tar *.jpg *.txt` packs them."""
    path = tmp_path / "x.tar"
    rows = {f"{at:02d}": sample(at) for at in range(60)}
    with tarfile.open(path, "w") as archive:
        for kind in ("png", "json", "txt"):
            for key, members in rows.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(members[kind])
                archive.addfile(info, io.BytesIO(members[kind]))
    told = "120 samples are in pieces: a sample's files must be neighbours"
    assert reader.count(str(path)).problem.startswith(told)
    with pytest.raises(ValueError, match="a sample's files must be neighbours in their tar") as refusal:
        list(read_samples(str(path), SampleStats(max_bad_share=0.1)))
    assert message(refusal.value)


# ---- bombs, each in a process with a limit


def read_limited(path):
    """As training reads them: index, and every sample of it; and as precompute does."""
    start = time.perf_counter()
    counted = reader.count(path)
    tally = SampleStats(max_bad_share=1.0)
    shards = reader.TarShards(ShardIndex([path], [counted.count]), NoSidecars())
    given = [raw for _, raw in shards.read(0, range(counted.count), tally)]
    whole = list(read_samples(path, SampleStats(max_bad_share=1.0)))
    told = [reason.detail for reason in tally.reasons.values()] + [raw.large for raw in given if raw.large]
    return counted.count, counted.problem, [one.key for one in whole], told, time.perf_counter() - start


def member(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


GOOD = b"".join(
    member(f"a.{kind}", len(data)) + data + bytes(-len(data) % 512)
    for kind, data in sample(1).items()
    if kind != "json"
)


def sparse(path):
    """A member of 40 GB, nearly all of it a hole, as `tar -S` writes it: 10 kB on the disk."""
    header = bytearray(member("b.png", 512, tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[482:483], header[483:495] = b"\0", b"%011o\0" % min(40 << 30, 8**11 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(GOOD + bytes(header) + b"x" * 512 + bytes(1024))


def compressed(path):
    """7 GB of zeros in 7 MB."""
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(GOOD + member("b.png", 7 << 30))
        chunk = bytes(64 << 20)
        for _ in range(4):  # the rest need not be there: nobody should come to it
            file.write(chunk)


def many_headers(path):
    """300 MB of headers of empty files in 1 MB."""
    path.write_bytes(lzma.compress(GOOD + b"".join(member(f"{at % 7}.png", 0) for at in range(7)) * 90_000, preset=1))


def a_long_name(path):
    path.write_bytes(
        gzip.compress(GOOD + member("././@LongLink", 1 << 30, tarfile.GNUTYPE_LONGNAME) + b"a" * (8 << 20))
    )


def names_in_names(path):
    info = tarfile.TarInfo("b.png")
    info.pax_headers = {"comment": "the next one is a header of a header, too"}
    path.write_bytes(GOOD + info.tobuf(tarfile.PAX_FORMAT)[:1024] * 1000)


def a_map_of_holes(path):
    """A pax header says that a map follows, which then never ends."""
    info = tarfile.TarInfo("b.png")
    info.size = 1 << 30
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png"}
    info.pax_headers["GNU.sparse.realsize"] = str(1 << 40)
    path.write_bytes(gzip.compress(GOOD + info.tobuf(tarfile.PAX_FORMAT) + b"99999999\n" + b"9\n" * (32 << 20)))


BOMBS = {
    sparse: ".png of 8,589,934,591 bytes, more than max_member_mb=256",
    compressed: "it would be 7,516,",
    many_headers: "it would be 1",
    a_long_name: "a header of more than 1,048,576 bytes",
    names_in_names: "headers within headers at byte",
    a_map_of_holes: "a header of more than 1,048,576 bytes",
}


def all_limited(paths):
    return [read_limited(path) for path in paths]


def test_the_limit_of_these_tests_is_one():
    assert limited(limits_hold) == 2 << 30


@pytest.mark.slow
def test_a_bomb_costs_little_and_what_is_before_it_is_read(tmp_path):
    paths = []
    for bomb in BOMBS:
        paths.append(tmp_path / bomb.__name__ / "x.tar")
        paths[-1].parent.mkdir()
        bomb(paths[-1])
        assert paths[-1].stat().st_size < 20 << 20
    for bomb, (count, problem, found, told, took) in zip(BOMBS, limited(all_limited, [*map(str, paths)]), strict=True):
        said = " ".join([problem or "", *told])
        assert BOMBS[bomb] in said, (bomb.__name__, said)
        assert found == ["x/a"] and count >= 1 and took < 30, (bomb.__name__, took)


# ---- changed at random


def flip(body, draw, headers):
    at = draw(st.integers(0, len(body) - 1))
    return body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]


def flip_header(body, draw, headers):
    at = draw(st.sampled_from(headers)) + draw(st.integers(0, 511))
    return body[:at] + bytes([draw(st.integers(0, 255))]) + body[at + 1 :]


def hole(body, draw, headers):
    at = 512 * draw(st.integers(0, len(body) // 512 - 1))
    return body[:at] + bytes(512) + body[at + 512 :]


def cut(body, draw, headers):
    return body[: draw(st.integers(0, len(body)))]


def twice(body, draw, headers):
    at = draw(st.sampled_from(headers))
    return body[:at] + body[at : at + 1024] + body[at:]


def swapped(body, draw, headers):
    one, other = sorted(draw(st.lists(st.sampled_from(headers), min_size=2, max_size=2, unique=True)))
    a, b = body[one : one + 512], body[other : other + 512]
    return body[:one] + b + body[one + 512 : other] + a + body[other + 512 :]


CHANGES = [flip, flip_header, hole, cut, twice, swapped]
FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def test_whatever_is_done_to_a_tar_each_of_its_samples_is_given_or_counted(tmp_path):
    path, outcomes = tmp_path / "x.tar", []

    @BOUNDED
    @given(st.data(), st.integers(2, 6), st.sampled_from(FORMS), st.sampled_from(list(PACKED)), st.booleans())
    def changed(data, rows, form, packing, packed_first):
        body, headers, _ = written(rows, form)
        change = data.draw(st.sampled_from(CHANGES))
        if packed_first:
            packed = PACKED[packing](body)
            spoilt = change(packed, data.draw, [0, len(packed) // 2]) if change in (flip, cut) else packed
        else:
            spoilt = PACKED[packing](change(body, data.draw, headers))
        path.write_bytes(spoilt)
        tally = SampleStats(max_bad_share=1.0)
        shards = reader.TarShards(ShardIndex([str(path)], [rows]), NoSidecars())
        given_ = list(shards.read(0, range(rows), tally))
        assert len(given_) + tally.bad == rows, "of what the index counted"
        found, through = read(path)
        assert {raw.key for _, raw in given_} <= set(found), "training gives what reading through gives"
        outcomes.append((len(given_) < rows, reader.count(str(path)).problem is not None or through.bad > 0))
        if len(found) < rows:
            assert not through.clean, "and what is missing is told"

    changed()
    assert len(outcomes) == 150
    assert 40 <= sum(lost for lost, _ in outcomes) and all(told for lost, told in outcomes if lost)


def test_a_whole_tar_is_whole_in_every_form(tmp_path):
    for form in FORMS:
        for packing, pack in PACKED.items():
            (tmp_path / "x.tar").write_bytes(pack(written(5, form)[0]))
            found, tally = read(tmp_path / "x.tar")
            assert len(found) == 5 and tally.clean and reader.count(str(tmp_path / "x.tar")) == (5, None), packing
