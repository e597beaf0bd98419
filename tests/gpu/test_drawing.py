"""A GPU draws what a CPU draws: as it is, in turns, and compiled."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from fixtures import precomputing
from fixtures.evaluators import inception_state, photos
from fixtures.programs import environment

from open_kandinsky.data.cached_data import CachedData
from open_kandinsky.loading import load
from open_kandinsky.metrics.evaluators import Inception, tf1
from open_kandinsky.precompute import precompute

pytestmark = pytest.mark.gpu

COMPILED = """
import json, sys
import torch
from open_kandinsky.loading import load

system, dtype = sys.argv[1], getattr(torch, sys.argv[2])
plain, quick = (load(system, device="cuda", dtype=dtype, compile=compile) for compile in (False, True))

def drawn(pipe, seed):
    image_emb = pipe.text_to_embedding(["a red circle", "a blue cross"], steps=4, seeds=[seed, seed + 1])
    return pipe.embedding_to_latent(image_emb, ["a red circle"] * 2, steps=6, seeds=[seed, 9])

first = drawn(quick, 0)
kept, again = first.clone(), [drawn(quick, seed) for seed in (1, 0)]
apart = [(a - b).norm() / b.norm() for a, b in zip([first, again[0]], [drawn(plain, seed) for seed in (0, 1)])]
apart.append((quick.latent_to_image(first) - plain.latent_to_image(first)).abs().median())
same = first.equal(kept) and first.equal(again[1])
print(json.dumps({"apart": float(max(apart)), "differ": float((first - again[0]).norm() / first.norm()), "same": same}))
"""


def levels(image):
    return np.asarray(image).astype(int)


def test_a_gpu_draws_what_a_cpu_draws(system):
    """In all of a pipeline's networks: to a level of a picture, and nearly all to the same."""
    ours, expected = (load(system, device=device).text_to_image(["a"] * 2, steps=4) for device in ("cuda", "cpu"))
    for one, other in zip(ours, expected, strict=True):
        apart = np.abs(levels(one) - levels(other))
        assert apart.max() <= 1 and apart.mean() < 0.01
    mapped = load(system, device={"rest": "cuda", "prior": "cpu"}).text_to_image(["a"] * 2, steps=4)
    assert np.abs(levels(mapped[0]) - levels(expected[0])).max() <= 1


def test_parts_take_turns_on_a_gpu(system):
    """The same pictures; what waits holds no memory there."""
    held = []
    for offload in (False, True):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        pipe = load(system, device="cuda", offload=offload)
        pictures = [image.tobytes() for image in pipe.text_to_image(["a"], steps=3)]
        held.append((pictures, torch.cuda.memory_allocated() - before))
    assert held[0][0] == held[1][0] and held[1][1] < held[0][1] / 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_what_is_compiled_draws_the_same(system, tmp_path, dtype, tolerance):
    """As a program of its own: what checks shapes here is not to be compiled. A later call leaves earlier latents."""
    program = [sys.executable, "-c", COMPILED, str(system), dtype]
    said = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment())
    found = json.loads(said.stdout.splitlines()[-1])
    assert found["apart"] < tolerance < found["differ"] and found["same"]


def test_a_cache_made_on_a_gpu_is_a_cpus(shapes, system, tmp_path):
    made = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        precompute(precomputing.config(shapes / "shapes" / "train", out, system, f"device={device}"))
        fields = ["z", "image_emb", "text_emb", "text_tokens", "text_mask"]
        data = CachedData(path=str(out), val_path=str(out), fields=fields, padding=True, batch_size=8, limit=None,
                          in_memory=True, workers=0, shuffle_buffer=8, seed=0, dims={}, sizes={})  # fmt: skip
        made[device] = next(iter(data.val_dataloader()))
    assert made["cpu"]["key"] == made["cuda"]["key"]
    for field in fields:
        torch.testing.assert_close(made["cuda"][field].float(), made["cpu"][field].float(), rtol=1e-2, atol=2e-3)


def test_features_are_a_cpus():
    network, pictures = Inception(state=inception_state(), input_path=tf1).eval(), photos(3, 80, 96)
    with torch.inference_mode():
        expected = network(pictures)
        found = network.cuda()(pictures.cuda())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
