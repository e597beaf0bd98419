"""Shards wherever they lie: a failed read goes on where it was, a hopeless one says why, none waits for ever."""

import bz2
import gzip
import lzma
import random
from itertools import count

import fsspec
import pytest
from fixtures.bucket import storing
from fixtures.shards import sample, write_folder, write_tar
from fixtures.web import serving

from open_kandinsky.data.tar import opening, reader
from open_kandinsky.data.tar.index import Indexer
from open_kandinsky.data.tar.opening import open_url, shard_urls
from open_kandinsky.data.tar.reader import TarShards, read_samples
from open_kandinsky.data.tar.sample import NoSidecars
from open_kandinsky.data.tar.stats import SampleStats

BODY = random.Random(0).randbytes(100_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(opening, "PAUSE", 0.001)
    monkeypatch.setattr(opening, "TIMEOUT", 10.0)
    monkeypatch.setattr(opening, "BLOCK", 10_000)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def read(url):
    with open_url(url) as file:
        return file.read()


def pieces(url, places):
    with open_url(url) as file:
        return [(file.seek(at), file.read(n))[1] for at, n in places]


PLACES = [(0, 10), (50_000, 30_000), (10, 5), (99_990, 100), (100_000, 1), (20_000, 1)]
EXPECTED = [BODY[at : at + n] for at, n in PLACES]


@pytest.mark.parametrize("ranges", [True, False])
def test_any_place_of_a_file_on_a_server(ranges):
    with serving({"/x": BODY}, ranges=ranges) as web:
        assert read(f"{web.address}/x") == BODY
        assert pieces(f"{web.address}/x", PLACES) == EXPECTED
        whole = [size for _, size in web.sent if size == len(BODY)]
        assert len(whole) == (0 if ranges else 2), "once for each time that it was opened"


def test_any_place_of_a_file_in_memory(memory):
    memory.pipe("/a/x", BODY)
    assert read("memory://a/x") == BODY and pieces("memory://a/x", PLACES) == EXPECTED


def test_what_is_passed_over_is_not_fetched():
    with serving({"/x": BODY}) as web:
        pieces(f"{web.address}/x", [(0, 10), (90_000, 10)])
        assert sum(size for _, size in web.sent) == 20_000, "two blocks"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["cut", 503, 429])
def test_a_read_that_fails_goes_on_where_it_was(fault, ranges):
    """Every second answer fails, bodies and sizes alike."""
    turn = count()
    with serving({"/x": BODY}, ranges=ranges, fault=lambda path, body: fault if next(turn) % 2 else None) as web:
        assert read(f"{web.address}/x") == BODY
        assert pieces(f"{web.address}/x", PLACES) == EXPECTED


def test_a_server_that_never_recovers_is_given_up():
    with serving({"/x": BODY}, fault=lambda path, body: 503 if body else None) as web:
        with pytest.raises(OSError, match=r"503(.|\n)*4 attempts.*/x"):
            read(f"{web.address}/x")


def test_a_slow_server_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(opening, "TIMEOUT", 0.2)
    monkeypatch.setattr(opening, "ATTEMPTS", 2)
    with serving({"/x": BODY}, fault=lambda path, body: "slow" if body else None) as web:
        with pytest.raises(OSError, match="Timeout.*2 attempts"):  # who waits gets an answer
            read(f"{web.address}/x")


def test_a_command_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(opening, "TIMEOUT", 0.2)
    with pytest.raises(TimeoutError, match=r"nothing came.*sleep"):
        read("pipe:sleep 30")


def test_a_command_is_read_and_its_failure_noticed():
    assert read("pipe:printf abc; printf def") == b"abcdef"
    with pytest.raises(OSError, match="failed with 3"):
        read("pipe:printf abc; exit 3")


@pytest.mark.parametrize(("status", "kind"), [(404, FileNotFoundError), (403, PermissionError), (401, PermissionError)])
def test_what_no_other_attempt_would_mend_is_told_at_once(status, kind):
    asked = []
    with serving({"/x": BODY}, fault=lambda path, body: asked.append(path) or status) as web:
        with pytest.raises(kind, match="/x"):
            read(f"{web.address}/x")
    assert len(asked) <= 2, "a HEAD and the GET that fsspec tries after it"


def test_nobody_is_there():
    with serving({}) as web:
        address = web.address
    with pytest.raises(OSError, match="4 attempts"):
        read(f"{address}/x")


def test_no_credentials(monkeypatch):
    class NoCredentialsError(Exception):
        """As botocore's, which is no OSError."""

    def ask():
        raise NoCredentialsError("Unable to locate credentials")

    with pytest.raises(PermissionError, match="Unable to locate.*credentials that may read it.*s3://b/x"):
        opening.retry(ask, "s3://b/x")


# --- addresses ---


def test_addresses_are_looked_up_where_they_have_wildcards(memory):
    for name in ("a/1.tar", "a/0.tar", "a/note.txt", "b/2.tar"):
        memory.pipe(f"/{name}", b"")
    assert shard_urls("memory://a/*.tar") == ["memory:///a/0.tar", "memory:///a/1.tar"]
    assert shard_urls("memory://a/") == ["memory:///a/0.tar", "memory:///a/1.tar"]
    assert shard_urls("memory://{a,b}/[02].tar") == ["memory:///a/0.tar", "memory:///b/2.tar"]
    assert shard_urls("memory://c/7.tar") == ["memory://c/7.tar"], "one name is not looked for yet"
    with pytest.raises(ValueError, match=r"memory://c/\*.tar.*no such file"):
        shard_urls("memory://c/*.tar")


@pytest.mark.parametrize("url", ["http://[::1]:80/0.tar", "https://host/0.tar?sign=*[x]"])
def test_an_address_without_wildcards(url):
    assert shard_urls(url) == [url]


def test_a_missing_package_is_named(monkeypatch):
    def missing(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(opening, "url_to_fs", missing)
    with pytest.raises(ValueError, match="gs://b/0.tar.*install gcsfs"):
        shard_urls("gs://b/0.tar")


def test_a_mistyped_protocol_is_named():
    with pytest.raises(ValueError, match="s4://b/0.tar.*no file system.*'s4'"):
        shard_urls("s4://b/0.tar")


def test_the_same_samples_from_everywhere(tmp_path, memory):
    url = write_folder(tmp_path / "a", [5]) + "/00000.tar"
    data = (tmp_path / "a" / "00000.tar").read_bytes()
    memory.pipe("/00000.tar", data)
    expected = [
        (one.key, one.caption, one.image.tobytes()) for one in read_samples(url, SampleStats(max_bad_share=0.0))
    ]
    with serving({"/00000.tar": data}) as web, serving({"/00000.tar": data}, ranges=False) as plain:
        urls = [f"{web.address}/00000.tar", f"{plain.address}/00000.tar", "memory://00000.tar", f"pipe:cat {url}"]
        for other in urls:
            found = read_samples(other, SampleStats(max_bad_share=0.0), allow_pipe=True)
            assert [(one.key, one.caption, one.image.tobytes()) for one in found] == expected, other


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compressed_shards(tmp_path, module):
    url = write_tar(tmp_path / "x.tar", {f"{at}": sample(at) for at in range(3)})
    squeezed = module.compress(open(url, "rb").read())
    (tmp_path / "x.tar").write_bytes(squeezed)
    for form in (url, f"pipe:cat {url}"):
        found = read_samples(form, SampleStats(max_bad_share=0.0), allow_pipe=True)
        assert [one.key for one in found] == ["x/0", "x/1", "x/2"]


# --- S3 ---


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    folder = write_folder(tmp_path / "a", [3, 4])
    files = {f"/bucket/set/{at}.tar": open(f"{folder}/0000{at}.tar", "rb").read() for at in range(2)}
    turn = count()
    with storing(files, fault=lambda path, body: "cut" if body and next(turn) % 3 == 2 else None) as web:
        for name, value in [("ENDPOINT_URL", web.address), ("ACCESS_KEY_ID", "us"), ("SECRET_ACCESS_KEY", "secret")]:
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield web
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_shards_of_a_bucket(bucket, tmp_path):
    urls = shard_urls("s3://bucket/set/*.tar")
    assert urls == shard_urls("s3://bucket/set/") == ["s3://bucket/set/0.tar", "s3://bucket/set/1.tar"]
    index = Indexer(folder=str(tmp_path / "index"), threads=2, count=reader.count)(urls)
    assert index.counts == [3, 4]
    tally = SampleStats(max_bad_share=0.0)
    found = TarShards(index, NoSidecars()).read(1, [1, 3], tally)
    assert [(at, raw.key) for at, raw in found] == [(1, "1/000010001"), (3, "1/000010003")] and tally.clean


@pytest.mark.parametrize("urls", [".", "*.tar", "pipe*.tar", "{pipe:touch ran #,other}.tar"])
def test_a_file_that_is_called_like_a_command_is_a_file(urls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "pipe:touch ran #.tar", {"0": sample(0)})
    write_tar(tmp_path / "other.tar", {"0": sample(0)})
    found = shard_urls(urls)
    assert "./pipe:touch ran #.tar" in found
    assert len(list(read_samples(found, SampleStats(max_bad_share=0.0)))) == len(found)
    assert not (tmp_path / "ran").exists()


def test_braces_are_expanded_as_webdataset_does_it(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "a", [1, 1])
    monkeypatch.setenv("WDS_SET", str(tmp_path))
    assert shard_urls("${SET}/a/{00000..00001}.tar") == [f"{folder}/00000.tar", f"{folder}/00001.tar"]
    with pytest.raises(ValueError, match="NONE.*WDS_NAME, which is not set; set it"):
        shard_urls("${NONE}/{00000..00001}.tar")
