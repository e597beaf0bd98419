"""The assembled system, tiny and untrained: what image i depends on, and what guidance, sizes and weights mean."""

import numpy as np
import pytest
import torch
from fixtures.system import untrained
from PIL import Image

from open_kandinsky.core.failures import message
from open_kandinsky.loading import load

PROMPTS = ["a red circle", "a small blue cross left of a green square", "a green triangle"]
SEEDS = [3, 5, 2**32 - 1]


@pytest.fixture(scope="module")
def pipe(system):
    return load(system)


@pytest.fixture(scope="module")
def photo():
    ramp = np.linspace(0, 255, 50 * 40 * 3).reshape(50, 40, 3)
    return Image.fromarray(ramp.astype(np.uint8))


def draw(pipe, prompts=PROMPTS, seeds=SEEDS, **options):
    return pipe.text_to_image(prompts, seeds=seeds, prior_steps=2, **{"steps": 2} | options)


def array(image):
    return np.asarray(image).astype(int)


def same(one, other):
    """But for a few levels of 256: the batch may change the order of sums, which an untrained network makes much of."""
    return abs(array(one) - array(other)).max() <= 4


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "plms", "dpmpp_2m"])
def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order(pipe, sampler):
    batch = draw(pipe, sampler=sampler)
    assert all(same(a, draw(pipe, [p], [s], sampler=sampler)[0]) for a, p, s in zip(batch, PROMPTS, SEEDS, strict=True))
    assert all(map(same, batch, draw(pipe, PROMPTS[::-1], SEEDS[::-1], sampler=sampler)[::-1]))


def test_the_same_seed_is_the_same_image_and_another_is_not(pipe):
    one, two, other = draw(pipe), draw(pipe), draw(pipe, seeds=[4, 6, 8])
    assert all(np.array_equal(a, b) for a, b in zip(map(array, one), map(array, two), strict=True))
    assert not any(map(same, one, other))


def test_seeds_left_out_are_the_first_numbers(pipe):
    assert all(map(same, draw(pipe, seeds=None), draw(pipe, seeds=[0, 1, 2])))


@pytest.mark.parametrize(
    ("seeds", "told"),
    [([1], "1 seeds for 3 images"), ([0, 1, 2**32], "seeds are from 0 to 2"), ([0, 1, -1], "seeds are from 0 to 2")],
)
def test_seeds_that_cannot_be(pipe, seeds, told):
    with pytest.raises(ValueError, match=told) as refusal:
        draw(pipe, seeds=seeds)
    assert message(refusal.value)


@pytest.fixture
def batches(pipe, monkeypatch):
    """How many examples each call of prior and decoder was given."""
    sizes = []
    for network in (pipe.prior.network, pipe.decoder.network):
        forward = network.forward
        monkeypatch.setattr(network, "forward", lambda x, *a, f=forward: sizes.append(len(x)) or f(x, *a))
    return sizes


def test_without_guidance_no_batch_is_doubled(pipe, batches):
    draw(pipe, prior_scale=1.0, scale=1.0)
    assert set(batches) == {3}
    batches.clear()
    draw(pipe, prior_scale=2.0, scale=2.0)
    assert set(batches) == {6}


def test_scale_1_is_the_condition_alone_and_the_limit_of_guidance(pipe):
    kwargs = dict(seeds=SEEDS, steps=3, sampler="ddim")
    plain = pipe.text_to_embedding(PROMPTS, scale=1.0, **kwargs)
    near = pipe.text_to_embedding(PROMPTS, scale=1 + 1e-6, **kwargs)
    torch.testing.assert_close(plain, near, rtol=1e-3, atol=1e-3)
    ignoring = pipe.text_to_embedding(PROMPTS, scale=1.0, negative_prompt="anything", **kwargs)
    assert torch.equal(plain, ignoring)
    assert not torch.allclose(plain, pipe.text_to_embedding(PROMPTS, scale=4.0, **kwargs), atol=1e-2)


@pytest.mark.parametrize(
    ("size", "latent"), [((32, 32), (8, 8)), ((33, 20), (6, 10)), ((1, 8), (2, 2)), ((40, 41), (12, 10))]
)
def test_sizes_are_rounded_up_for_the_networks_and_cropped(pipe, size, latent):
    """Width and height in pixels; 4 pixels a latent, which the U-Net halves once."""
    assert draw(pipe, PROMPTS[:1], [0], size=size)[0].size == size
    image_emb = pipe.text_to_embedding(PROMPTS[:1], steps=1)
    assert pipe.embedding_to_latent(image_emb, PROMPTS[:1], size=size, steps=1).shape == (1, 4, *latent)


def test_a_size_that_cannot_be(pipe):
    for size in ((0, 32), -8, (8, 8, 8), 1.5, "32", True):
        with pytest.raises(ValueError, match=r"size=.*: a number of pixels or \(width, height\)"):
            draw(pipe, size=size)


def test_a_sampler_that_does_not_exist(pipe):
    with pytest.raises(ValueError, match="sampler='dimm': no such sampler; did you mean .ddim."):
        draw(pipe, sampler="dimm")


def test_a_mix_takes_its_weights_as_they_are(pipe, photo):
    emb = pipe.image_to_embedding([photo])
    options = dict(steps=2, seeds=[7])
    [first] = pipe.mix([photo, PROMPTS[0]], [1.0, 0.0], **options)
    assert same(first, pipe.variations(photo, 1, **options)[0])
    [twice] = pipe.mix([photo, photo], [1.0, 1.0], **options)
    z = pipe.embedding_to_latent(2 * emb, [""], **options)
    assert not same(twice, pipe.variations(photo, 1, **options)[0])
    pixels = pipe.latent_to_image(z)[0]
    assert abs(array(twice) - ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy()).max() <= 1
    with pytest.raises(ValueError, match="2 texts and images but 1 weights"):
        pipe.mix([photo, photo], [1.0])


def test_a_text_of_a_mix_goes_through_the_prior(pipe):
    [mixed] = pipe.mix([PROMPTS[0]], [1.0], seeds=[7], steps=2)
    image_emb = pipe.text_to_embedding([PROMPTS[0]], seeds=[7])
    pixels = pipe.latent_to_image(pipe.embedding_to_latent(image_emb, [""], seeds=[7], steps=2))[0]
    assert abs(array(mixed) - ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy()).max() <= 1


def test_variations_differ_by_their_seeds_alone(pipe, photo):
    three = pipe.variations(photo, 3, steps=2)
    assert len(three) == 3 and not same(three[0], three[1])
    assert same(three[2], pipe.variations(photo, 1, steps=2, seeds=[2])[0])


def test_images_of_any_mode_and_size_have_an_embedding(pipe, photo):
    images = [photo, photo.convert("L"), photo.convert("RGBA"), photo.resize((9, 90))]
    emb = pipe.image_to_embedding(images)
    assert emb.shape == (4, 32) and emb.isfinite().all()
    torch.testing.assert_close(emb[0], emb[2])


def test_no_prior_is_the_captions_embedding(system, tmp_path):
    pipe = load({"rest": system, "prior": untrained("prior_none", tmp_path)})
    torch.testing.assert_close(pipe.text_to_embedding(PROMPTS), pipe.clip.encode_text(PROMPTS).emb)


def test_noise_may_be_given(pipe):
    x_T = torch.randn(2, 32)
    one = pipe.text_to_embedding(PROMPTS[:2], x_T=x_T, noise=iter([torch.zeros(2, 32)] * 9), steps=3)
    two = pipe.text_to_embedding(PROMPTS[:2], x_T=x_T, noise=iter([torch.zeros(2, 32)] * 9), steps=3, seeds=[8, 9])
    assert torch.equal(one, two)
