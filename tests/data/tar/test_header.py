"""Headers of tars, against tarfile's own reading of them: whole, of every kind, and garbled anywhere."""

import io
import random
import tarfile

import pytest

from open_kandinsky.data.tar.reader import FILE, NAME, Archive, Header

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = ["000000001.jpg", "a/b.txt", "é.json", "n" * 99, "n" * 100, "./x.png", "trailing/", "a b\n.jpg"]
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CONTTYPE, b"x"]


def read(reader, block):
    """What samples need, or the error."""
    try:
        info = reader.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        return type(error), str(error)
    return info.name, info.size, info.type, info.isreg(), info.isdir(), info.sparse


def agrees(block):
    return read(Header, block) == read(tarfile.TarInfo, block)


def signed(block):
    """With the checksum that belongs to it."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def blocks():
    for form in FORMATS:
        for name in NAMES:
            for kind in TYPES:
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.type, info.uid, info.uname = 88714, 1.7e9, kind, 1000, "somebody"
                data = info.tobuf(form, "utf-8", "surrogateescape")
                yield from (data[at : at + 512] for at in range(0, len(data), 512))


def test_every_kind_of_member():
    assert all(agrees(block) for block in blocks())


@pytest.mark.parametrize("form", FORMATS)
def test_what_img2dataset_writes_is_not_left_to_tarfile(form, monkeypatch):
    info = tarfile.TarInfo("000000001.jpg")
    info.size = 88714
    block = info.tobuf(form)
    monkeypatch.setattr(tarfile, "calc_chksums", None)
    assert read(Header, block)[:2] == ("000000001.jpg", 88714)


@pytest.mark.parametrize("again", [lambda block: block, signed], ids=["garbled", "signed again"])
def test_any_byte_changed(again):
    plain = next(blocks())
    assert FILE.fullmatch(plain, NAME)
    for at in range(512):
        for byte in (0, 32, 47, 48, 53, 56, 128, 255, plain[at] ^ 1):
            block = bytearray(plain)
            block[at] = byte
            assert agrees(again(bytes(block))), f"byte {at} is {byte}"


def test_many_bytes_changed():
    draws, every = random.Random(0), list(blocks())
    for _ in range(3000):
        block = bytearray(draws.choice(every))
        for _ in range(draws.randint(1, 4)):
            block[draws.choice([draws.randrange(512), draws.randrange(100, 160)])] = draws.choice(b"\0 017x\x80\xff")
        assert agrees(signed(block)) and agrees(bytes(block))


@pytest.mark.parametrize("block", [b"", b"x", bytes(511), bytes(512), b"\xff" * 512, b"0" * 512, bytes(513)])
def test_what_is_no_header(block):
    assert agrees(block)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["r:", "r|"])
def test_archives(form, mode):
    """Long names, pax headers of a member and of all members, links and folders, against tarfile."""
    held, draws = io.BytesIO(), random.Random(0)
    long = "/".join(["folder"] * 20) if form == tarfile.USTAR_FORMAT else "/".join(["a long folder"] * 30)
    with tarfile.open(fileobj=held, mode="w", format=form, pax_headers={"comment": "of all members"}) as archive:
        for at, name in enumerate([*NAMES, f"{long}/x.jpg", *NAMES]):
            info = tarfile.TarInfo(name)
            info.type, info.mtime = draws.choice(TYPES[:4]), at + 0.5
            info.pax_headers = {"path": f"other/{at}.txt"} if at % 3 == 2 else {}
            info.size = draws.choice([0, 1, 512, 1000]) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(bytes(info.size)))

    def members(kind):
        with kind.open(fileobj=io.BytesIO(held.getvalue()), mode=mode) as archive:
            return [(m.name, m.size, m.type, m.offset, m.offset_data, m.pax_headers) for m in archive]

    assert members(Archive) == members(tarfile.TarFile) and len(members(Archive)) == 17
