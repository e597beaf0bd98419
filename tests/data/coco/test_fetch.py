"""COCO comes over HTTP in any number of attempts, is what was published or is refused, and is unpacked once."""

import hashlib
import os
import re
import shutil
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fixtures import coco as maker
from fixtures.pictures import refused

from open_kandinsky import cli
from open_kandinsky.coco import main
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.coco import fetch as fetching
from open_kandinsky.data.coco.fetch import CocoRelease, RemoteArchive, fetch

NOTES, PICTURES = ZIPS = ("annotations_trainval2014.zip", "val2014.zip")
NOWHERE = "http://127.0.0.1:9"  # a port that nobody listens on


class Server:
    """Serves a folder and writes down what it is asked for.

    `cut`: how many bytes of an answer it sends before it hangs up. `ranges`: whether it knows what they are.
    """

    def __init__(self, folder):
        self.folder, self.cut, self.ranges = folder, None, True
        self.asked = []

    def answer(self, handler):
        name, wanted = handler.path.rpartition("/")[2], handler.headers["Range"]
        self.asked.append((name, wanted))
        if not (self.folder / name).exists():
            return handler.send_error(404)
        data = (self.folder / name).read_bytes()
        first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if first >= len(data):
            return handler.send_error(416)
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - first))
        handler.end_headers()
        handler.wfile.write(data[first:][: self.cut])


@contextmanager
def listening(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *_):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(listener.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}/zips"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return maker.make(tmp_path_factory.mktemp("coco") / "set", n_images=12)


@pytest.fixture(scope="module")
def zips(folder, tmp_path_factory):
    return maker.archives(folder, tmp_path_factory.mktemp("zips") / "zips")


@pytest.fixture
def server(zips, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(zips)
    with listening(server) as server.url:
        yield server


@pytest.fixture
def to(tmp_path):
    return tmp_path / "to"


def archive(path, url):
    data = path.read_bytes()
    return RemoteArchive(url=f"{url}/{path.name}", size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def published(zips, folder, server):
    set_ = Coco.open(folder)
    notes, pictures = (archive(zips / name, server.url) for name in ZIPS)
    return CocoRelease(annotations=notes, pictures=pictures, images=len(set_.images), captions=len(set_.captions))


def changed(published, part, **changes):
    return replace(published, **{part: replace(getattr(published, part), **changes)})


def unreachable(published):
    published = changed(published, "annotations", url=f"{NOWHERE}/{NOTES}")
    return changed(published, "pictures", url=f"{NOWHERE}/{PICTURES}")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def part_of(to, name, data):
    to.mkdir(exist_ok=True)
    (to / f"{name}.part").write_bytes(data)


@pytest.fixture
def assert_fetched(to, folder, zips):
    """The set as it was packed, its archives, and nothing else."""

    def check():
        assert files(to) == files(folder) | files(zips)

    return check


def test_fetched_and_unpacked_and_the_second_time_nothing(published, server, to, folder, assert_fetched):
    assert fetch(to, published).sha256 == Coco.open(folder).sha256
    assert_fetched()
    assert server.asked == [(name, None) for name in ZIPS]
    before = times(to)
    fetch(to, published)
    assert len(server.asked) == 2 and times(to) == before


def test_the_verb_says_where_it_is(published, to, monkeypatch, capsys, assert_fetched):
    typed = ["coco", f"to='{to}'", "published.images=12", f"published.captions={published.captions}"]
    for part in ("annotations", "pictures"):
        one = getattr(published, part)
        typed += [f"published.{part}.{key}='{getattr(one, key)}'" for key in ("url", "sha256")]
        typed += [f"published.{part}.size={one.size}"]
    monkeypatch.setattr("sys.argv", typed)
    main()
    assert_fetched()
    told = capsys.readouterr().out
    assert f"12 images and 63 captions in {to}\n" in told
    assert f"no longer needed: {to / NOTES}, {to / PICTURES}" in told
    assert "coco" in cli.VERBS


def test_a_connection_that_is_cut_again_and_again(published, server, to, zips, assert_fetched):
    """Each attempt asks for what comes after the last byte that is there, and for nothing twice."""
    server.cut = 3000
    fetch(to, published)
    assert_fetched()
    for name in ZIPS:
        starts = [int(wanted[6:-1]) if wanted else 0 for asked, wanted in server.asked if asked == name]
        assert starts == list(range(0, (zips / name).stat().st_size, 3000)) and len(starts) > 2


def test_a_run_that_was_stopped_is_gone_on_from(published, server, to, zips, assert_fetched):
    part_of(to, PICTURES, (zips / PICTURES).read_bytes()[:9999])
    fetch(to, published)
    assert (PICTURES, "bytes=9999-") in server.asked
    assert_fetched()


def test_a_part_that_is_whole_is_not_asked_for(published, server, to, zips, assert_fetched):
    part_of(to, PICTURES, (zips / PICTURES).read_bytes())
    fetch(to, published)
    assert [name for name, _ in server.asked] == [NOTES]
    assert_fetched()


def test_where_no_size_is_known_the_server_says_that_there_is_no_more(published, server, to, zips, assert_fetched):
    data = (zips / PICTURES).read_bytes()
    part_of(to, PICTURES, data)
    fetch(to, changed(published, "pictures", size=None))
    assert (PICTURES, f"bytes={len(data)}-") in server.asked
    assert_fetched()


def test_a_server_that_knows_no_ranges_begins_anew(published, server, to, assert_fetched):
    server.ranges = False
    part_of(to, PICTURES, b"not the beginning of it")
    fetch(to, published)
    assert_fetched()


def test_a_server_that_knows_no_ranges_and_hangs_up(published, server, to):
    server.ranges, server.cut = False, 1000
    refused("the connection was cut; 1,000 bytes are kept in .*zip.part", fetch, to, published)
    assert (to / f"{NOTES}.part").stat().st_size == 1000


def test_a_part_of_another_file_is_found_out_and_removed(published, to, assert_fetched):
    part_of(to, PICTURES, b"x" * 100)
    refused(r"val2014.zip: sha256 [0-9a-f]{64}, .* was published. What came was removed", fetch, to, published)
    assert not (to / f"{PICTURES}.part").exists() and not (to / PICTURES).exists() and not (to / "val2014").exists()
    fetch(to, published)
    assert_fetched()


@pytest.mark.parametrize(
    "change, told", [({"sha256": "0123"}, "sha256 .*, 0123 was published"), ({"size": 77}, "bytes, 77 were published")]
)
def test_what_came_is_not_what_was_published(published, to, change, told):
    refused(told, fetch, to, changed(published, "annotations", **change))
    assert files(to) == {}


def test_without_a_published_hash_the_size_is_checked(published, to, assert_fetched):
    fetch(to, changed(published, "pictures", sha256=None))
    assert_fetched()


def test_no_network_says_which_two_files_go_where(published, to):
    cfg = unreachable(published)
    with pytest.raises(ValueError) as refusal:
        fetch(to, cfg)
    told = str(refusal.value)
    for one in (cfg.annotations, cfg.pictures):
        assert f"  {one.url}\n    to {to / one.name} ({one.size:,} bytes, sha256 {one.sha256})" in told
    assert "refused" in told and f"{to}/annotations/captions_val2014.json and {to}/val2014/ do as well" in told


def test_archives_that_were_put_there_by_hand(published, to, zips, assert_fetched):
    """What the message says is enough; of what is there already it does not speak."""
    to.mkdir()
    shutil.copy(zips / NOTES, to)
    with pytest.raises(ValueError) as refusal:
        fetch(to, unreachable(published))
    assert NOTES not in str(refusal.value) and str(to / PICTURES) in str(refusal.value)
    shutil.copy(zips / PICTURES, to)
    fetch(to, unreachable(published))
    assert_fetched()


def test_an_unpacked_set_needs_no_network(published, to, folder):
    shutil.copytree(folder, to)
    fetch(to, unreachable(published))
    assert files(to) == files(folder)


def test_a_wrong_archive_that_a_person_put_there_is_left_to_them(published, to):
    to.mkdir()
    (to / NOTES).write_bytes(b"mine")
    refused(f"{NOTES}: 4 bytes, .* were published; nothing is overwritten", fetch, to, published)
    assert files(to) == {NOTES: b"mine"}


def test_a_file_that_is_not_on_the_server(published, server, to):
    refused("the server says 404", fetch, to, changed(published, "pictures", url=f"{server.url}/none.zip"))


def test_another_set_than_was_published(published, to):
    refused("12 images and 63 captions, 13 and 63 were published", fetch, to, replace(published, images=13))


def test_stopped_while_unpacking(published, server, to, assert_fetched, monkeypatch):
    """What was written whole is kept, what was not is written again, and val2014 is there only in the end."""
    extract, done = fetching.extract, []

    def stops(zipped, member, path):
        if len(done) == 5:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        extract(zipped, member, path)
        done.append(path.name)

    monkeypatch.setattr(fetching, "extract", stops)
    with pytest.raises(KeyboardInterrupt):
        fetch(to, published)
    assert not (to / "val2014").exists()
    kept = {path.name: time for path, time in times(to / fetching.PART).items() if path.name in done}
    monkeypatch.setattr(fetching, "extract", extract)
    fetch(to, published)
    assert_fetched()
    assert len(kept) == 4 and all((to / "val2014" / name).stat().st_mtime_ns == kept[name] for name in kept)
    assert len(server.asked) == 2


def test_stopped_while_moving(published, to, folder, assert_fetched):
    """Some are in their place, some are not yet, and one of these has lost its blocks to a power cut."""
    shutil.copytree(folder / "val2014", to / "val2014")
    (to / fetching.PART).mkdir()
    for path in sorted((to / "val2014").iterdir())[6:]:
        path.replace(to / fetching.PART / path.name)
    empty = next((to / fetching.PART).iterdir())
    empty.write_bytes(bytes(empty.stat().st_size))
    fetch(to, published)
    assert_fetched()


def test_pictures_that_were_deleted_come_back(published, to, assert_fetched):
    fetch(to, published)
    for path in sorted((to / "val2014").iterdir())[:3]:
        path.unlink()
    fetch(to, published)
    assert_fetched()


def test_pictures_of_other_sizes_are_not_overwritten(published, to, folder):
    (to / "val2014").mkdir(parents=True)
    name = sorted(os.listdir(folder / "val2014"))[2]
    (to / "val2014" / name).write_bytes(b"cut")
    refused(rf"1 pictures are not as long as in the archive \({name}\); nothing is overwritten", fetch, to, published)
    assert (to / "val2014" / name).read_bytes() == b"cut"


def test_an_archive_that_reaches_out_of_its_folder(tmp_path):
    """Only COCO's own names are written, whatever else an archive holds."""
    name = "COCO_val2014_000000000042.jpg"
    evil = ["../out.jpg", "/out.jpg", f"val2014/../../{name}", f"../val2014/{name}", f"val2014\\..\\{name}"]
    archive, into = tmp_path / PICTURES, tmp_path / "deep" / "down" / "to"
    maker.write_zip(archive, {f"val2014/{name}": b"good"} | dict.fromkeys(evil, b"evil"))
    into.mkdir(parents=True)
    fetching.unpack_pictures(archive, into)
    assert files(tmp_path) == {f"deep/down/to/val2014/{name}": b"good", PICTURES: archive.read_bytes()}


def test_archives_that_are_none(tmp_path):
    path = tmp_path / PICTURES
    path.write_bytes(b"no zip at all")
    refused("val2014.zip: damaged, or no zip .*`make coco`", fetching.unpack_pictures, path, tmp_path)
    maker.write_zip(path, {"train2014/a.jpg": b""})
    refused("holds no .*val2014.*, but train2014/a.jpg", fetching.unpack_pictures, path, tmp_path)
    refused("holds no .*captions_val2014", fetching.unpack_captions, path, tmp_path)


def test_an_archive_with_a_damaged_member(zips, tmp_path):
    path, data = tmp_path / PICTURES, bytearray((zips / PICTURES).read_bytes())
    with zipfile.ZipFile(zips / PICTURES) as zipped:
        data[zipped.infolist()[3].header_offset + 200] ^= 255
    path.write_bytes(data)
    refused("val2014.zip: damaged", fetching.unpack_pictures, path, tmp_path)
    assert not (tmp_path / "val2014").exists()


def test_a_full_disk_is_not_taken_for_a_lost_network(published, to, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "append", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(to, published)
