"""Stand-ins for what a self-check fetches: weights, pictures and statistics on a server of this machine."""

import hashlib
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import open_clip
import torch
from makers import coco
from makers.evaluators import photos
from PIL import Image
from safetensors.torch import save_file

from open_kandinsky.metrics.evaluators import Inception, pytorch_fid
from open_kandinsky.weights.published import PublishedFile

CLIP = "ViT-tiny-for-tests"
CLIP_SIZE = 48
SIZES = [(70, 90), (91, 64), (80, 80), (75, 101), (120, 66)]
INCEPTION, TINY, OTHER = WEIGHTS = ("inception.pth", "clip.safetensors", "other.pth")


class Small(Inception):
    """In Inception's place, a thousandth of its size: one convolution. It is as particular about what enters it."""

    def __init__(self, *, state, input_path):
        torch.nn.Module.__init__(self)
        self.input_path, self.memory_format = input_path, torch.contiguous_format
        self.conv = torch.nn.Conv2d(3, 16, 5, stride=4)
        self.load_state_dict(state)

    def forward(self, pixels):
        return self.activations(self.input_path(pixels))

    def activations(self, x):
        pool = self.conv(x).relu().mean((2, 3))
        return SimpleNamespace(pool=pool, logits_unbiased=2 * pool)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def serving(folder):
    """Yields the address where `folder` is."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def published(path, url):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PublishedFile(file=path.name, sha256=digest, url=f"{url}/{path.name}", what="a stand-in")


def make(folder):
    """Weights, cats/0.jpg to 4.jpg, stats.npz of other pictures, and two folders of PNGs; and a COCO of 12 beside."""
    for name in ("served/cats", "served/real", "served/drawn"):
        (folder / name).mkdir(parents=True)
    served = folder / "served"
    torch.manual_seed(2)
    torch.save({"conv.weight": torch.randn(16, 3, 5, 5), "conv.bias": torch.zeros(16)}, served / INCEPTION)
    torch.save({"x": torch.zeros(3)}, served / OTHER)
    write_clip(served / TINY, folder)
    for at, image in enumerate(pictures(SIZES, seed=3)):
        image.convert("L" if at == 2 else "RGB").save(served / "cats" / f"{at}.jpg", quality=90)
    for at, image in enumerate(pictures(SIZES[:3], seed=5)):
        image.save(served / "real" / f"{at}.png")
    for at, image in enumerate(pictures([(64, 64)] * 6, seed=7)):
        image.save(served / "drawn" / f"{at}.png")
    write_moments(served, small(served))
    coco.make(folder / "coco", n_images=12)
    return folder


def pictures(sizes, seed):
    for at, (w, h) in enumerate(sizes):
        yield Image.fromarray(photos(1, h, w, seed=seed + at)[0].permute(1, 2, 0).numpy())


def write_clip(path, folder):
    """Random weights of a CLIP that open_clip is told of."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": CLIP_SIZE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (folder / f"{CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{CLIP}.json")
    torch.manual_seed(4)
    save_file({name: x.contiguous() for name, x in open_clip.create_model(CLIP).state_dict().items()}, path)


def small(served):
    return Small(state=torch.load(served / INCEPTION), input_path=pytorch_fid)


@torch.inference_mode()
def write_moments(folder, network):
    """stats.npz as other programs write it, and pool.npy, the features that it is of."""
    pool = network(photos(40, 150, 150, seed=20)).pool.numpy()
    np.savez(folder / "stats.npz", mu=pool.mean(0), sigma=np.cov(pool, rowvar=False))
    np.save(folder / "pool.npy", pool)
