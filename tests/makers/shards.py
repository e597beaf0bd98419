"""Small tar shards in img2dataset's layout."""

import io
import json
import tarfile

from PIL import Image

from open_kandinsky.data.pairs import Captions, Filters, OneShape
from open_kandinsky.data.shard_data import ShardData
from open_kandinsky.data.tar.index import ShardIndex
from open_kandinsky.data.tar.reader import count as counted
from open_kandinsky.data.transforms import Pixels


def picture(value, size=(12, 9), form="PNG"):
    data = io.BytesIO()
    Image.new("RGB", size, (value % 256, 0, 0)).save(data, form)
    return data.getvalue()


def sample(at, **changes):
    """Members of one sample, as img2dataset names them; None leaves a member out."""
    members = {"png": picture(at), "json": json.dumps({"caption": f"c{at}"}).encode(), "txt": f"c{at}".encode()}
    return {name: data for name, data in (members | changes).items() if data is not None}


def write_tar(path, samples):
    """`samples`: key -> members."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def write_folder(path, counts):
    """Good shards; values run on from shard to shard."""
    at = 0
    for shard, count in enumerate(counts):
        write_tar(path / f"{shard:05d}.tar", {f"{shard:05d}{row:04d}": sample(at + row) for row in range(count)})
        at += count
    return str(path)


def index(urls):
    """Counted each time: no file is kept."""
    return ShardIndex(urls, [counted(url).count for url in urls])


def every_sample():
    return Filters(min_side=None, min_pixels=None, max_aspect=None, known={}, if_known={}, labels={})


def data(urls, **changes):
    settings = dict(
        urls=urls,
        sources=None,
        val_urls=None,
        fields={"pixels": Pixels(size=8)},
        filters=every_sample(),
        captions=Captions(weights={"txt": 1.0, "caption": 0.0}),
        buckets=OneShape(),
        index=index,
        background="white",
        parquet_columns=None,
        batch_size=4,
        workers=0,
        shuffle_buffer=16,
        in_memory=False,
        distinct_captions=False,
        max_bad_share=0.1,
        max_member_mb=256,
        seed=0,
        allow_pipe=False,
    )
    return ShardData(**settings | changes)
