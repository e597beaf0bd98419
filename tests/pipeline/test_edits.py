"""Edits held to numbers: pictures that come back whole (`Lossless`) and a decoder whose answer is known (`Says`)."""

import numpy as np
import pytest
import torch
from fixtures.pictures import array, photo, refused, right_third, same
from fixtures.system import spoken
from PIL import Image

from open_kandinsky.data.masks import keep_of
from open_kandinsky.diffusion.denoise import guide
from open_kandinsky.diffusion.parameterisation import Denoised
from open_kandinsky.diffusion.process import diffuse
from open_kandinsky.diffusion.samplers import SAMPLERS, PerImageNoise, named
from open_kandinsky.loading import load
from open_kandinsky.pipeline import FromImage, InpaintCondition

ENDS_CLEAN = ["ddpm", "dpmpp_2m"]
SIZES = [(32, 32), (31, 33), (8, 9), (40, 17), (25, 64)]
PRIOR = {"prior_steps": 1, "prior_scale": 1.0}
EMB = torch.zeros(1, 32)


@pytest.fixture(scope="module")
def real(system):
    return load(system)


def grey(x_t, t):
    return torch.zeros_like(x_t)


def ideal(pipe):
    """The best estimate for data of unit normal latents."""

    def answer(x_t, t):
        return pipe.decoder.alpha_bar[t].sqrt().to(x_t.dtype)[:, None, None, None] * x_t

    return answer


def latent(shape=(2, 48, 8, 8), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- image to image


@pytest.mark.parametrize("sampler", ENDS_CLEAN)
@pytest.mark.parametrize("strength", [0.1, 0.55, 1])
def test_a_decoder_that_knows_the_image_gives_it_back(real, sampler, strength):
    z = latent()
    pipe = spoken(real, lambda x_t, t: pipe.decoder.network.standardise(z), sampler=sampler)
    out = pipe.embedding_to_latent(EMB.expand(2, -1), ["", ""], start=FromImage(z, strength))
    torch.testing.assert_close(out, z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_comes_back_at_its_own_size_and_nowhere_resized(real, size):
    """Sides that the U-Net's 8 pixels do not divide are padded and cropped."""
    image = photo(size)
    pipe = spoken(real, None)
    pipe.decoder.network.answer = lambda x_t, t: x_0
    width, height = (-(-side // 8) * 8 for side in size)
    edge = np.pad(array(image), ((0, height - size[1]), (0, width - size[0]), (0, 0)), mode="edge")
    pixels = torch.from_numpy(edge).permute(2, 0, 1)[None].float() / 127.5 - 1
    x_0 = pipe.decoder.network.standardise(pipe.movq.encode(pixels))
    [out] = pipe.image_to_image("a red circle", image, 0.5, **PRIOR)
    assert same(out, image)
    x_t, t = pipe.decoder.network.seen[0]
    a = pipe.decoder.alpha_bar[t[0]]
    [eps] = next(PerImageNoise([0], x_0.shape[1:]))
    torch.testing.assert_close(x_t[0], (a.sqrt() * x_0[0] + (1 - a).sqrt() * eps).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.3), (10, 0.39), (7, 1.0), (25, 0.04)])
def test_the_last_steps_are_walked_from_the_image_with_that_times_noise(real, sampler, steps, strength):
    """The decoder's own alpha_bar at the first timestep visited; every image with its own noise."""
    z, seeds = latent(), [5, 2**32 - 1]
    pipe = spoken(real, grey, steps=steps, sampler=sampler)
    pipe.embedding_to_latent(EMB.expand(2, -1), ["", ""], start=FromImage(z, strength), seeds=seeds)
    whole = named(sampler).spacing(pipe.decoder.alpha_bar, steps).t.tolist()
    visited = list(dict.fromkeys(int(t[0]) for _, t in pipe.decoder.network.seen))
    assert visited == whole[len(whole) - int(len(whole) * strength) :]
    x_t, t = pipe.decoder.network.seen[0]
    expected = diffuse(
        pipe.decoder.network.standardise(z), next(PerImageNoise(seeds, z.shape[1:])), pipe.decoder.alpha_bar[t]
    )
    assert torch.equal(x_t, expected)


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpmpp_2m"])
def test_strength_one_is_the_whole_walk_from_the_diffused_image(real, sampler):
    z = latent()
    pipe = spoken(real, lambda x_t, t: x_t.tanh(), sampler=sampler)
    out = pipe.embedding_to_latent(EMB.expand(2, -1), ["", ""], start=FromImage(z, 1), seeds=[3, 4])
    alpha_bar, standardise = pipe.decoder.alpha_bar, pipe.decoder.network.standardise
    begin = named(sampler).spacing(alpha_bar, 10).alpha_bar[:1].expand(2)
    x_T = diffuse(standardise(z), next(PerImageNoise([3, 4], z.shape[1:])), begin)
    walked = named(sampler)(lambda x_t, t: Denoised(x_t.tanh(), None), x_T, alpha_bar, 10, iter(()))
    torch.testing.assert_close(out, standardise.inverse(walked))


def test_greater_strength_is_farther_from_the_image(real):
    z = latent()
    pipe = spoken(real, None, sampler="ddim", steps=20)
    pipe.decoder.network.answer = ideal(pipe)

    def distance(strength):
        out = pipe.embedding_to_latent(EMB.expand(2, -1), ["", ""], start=FromImage(z, strength))
        return float((out - z).square().mean().sqrt())

    distances = [distance(strength) for strength in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 0.2 * distances[-1]


def test_one_prompt_or_one_image_serves_for_all(real):
    pipe = spoken(real, lambda x_t, t: x_t.tanh())
    images = [photo(seed=1), photo((40, 24), seed=2)]
    both = pipe.image_to_image("a red circle", images, **PRIOR)
    assert [image.size for image in both] == [(32, 32), (40, 24)]
    assert all(map(same, both, pipe.image_to_image(["a red circle"] * 2, images, **PRIOR)))
    of_one = pipe.image_to_image(["a red circle", "a blue square"], images[0], **PRIOR)
    assert len(of_one) == 2 and same(of_one[0], both[0]) and not same(of_one[1], both[0])


@pytest.mark.parametrize("strength", [0, 0.0, -0.1, 1.0001, 2, float("nan"), float("inf")])
def test_strengths_that_cannot_be(real, strength):
    refused(rf"strength={strength}: above 0, at most 1", real.image_to_image, "a", photo(), strength)


def test_a_strength_of_no_step_says_what_would_be_one(real):
    pipe = spoken(real, grey, steps=30)
    refused("strength=0.03 of 30 steps is not one step: .* at least 0.034", pipe.image_to_image, "a", photo(), 0.03)
    assert len(pipe.image_to_image("a", photo(), 0.034, **PRIOR)) == 1


# ---- inpainting


def kept_pixels(mask):
    """Where pixels stay, from the latents that do."""
    columns, rows = (-(-side // 8) * 2 for side in mask.size)
    keep = keep_of(mask, factor=4, rows=rows, columns=columns)[0].bool().numpy()
    return keep.repeat(4, 0).repeat(4, 1)[: mask.height, : mask.width]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", [(32, 32), (50, 27)])
def test_the_kept_comes_back_whole_with_every_sampler(real, sampler, size):
    image, mask = photo(size), right_third(size)
    pipe = spoken(real, lambda x_t, t: x_t.sin(), sampler=sampler)
    [out] = pipe.inpaint("a red circle", image, mask, **PRIOR)
    kept = kept_pixels(mask)
    assert kept.any() and not kept.all() and not kept[np.asarray(mask) >= 128].any()
    assert abs(array(out) - array(image))[kept].max() == 0
    assert abs(array(out) - array(image))[~kept].mean() > 20


@pytest.mark.parametrize("sampler", ENDS_CLEAN)
def test_the_rest_is_painted_by_the_network(real, sampler):
    pipe = spoken(real, grey, sampler=sampler)
    standardised_grey = pipe.decoder.network.standardise.mean[None, :, None, None].expand(1, -1, 8, 8)
    painted = array(
        Image.fromarray(((pipe.movq.decode(standardised_grey)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    )
    image, mask = photo(), right_third((32, 32))
    [out] = pipe.inpaint("a red circle", image, mask, **PRIOR)
    kept = kept_pixels(mask)
    assert abs(array(out) - painted)[~kept].max() <= 1
    assert np.array_equal(array(out)[kept], array(image)[kept])


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_known_is_blended_at_every_step(real, sampler, scale):
    """What the next step sees is the step from the blended x_0, not from the network's, whatever U-Net it is."""
    z, keep = latent((1, 48, 8, 8)), (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    pipe = spoken(real, lambda x_t, t: x_t.sin(), sampler=sampler, scale=scale, steps=4)
    out = pipe.embedding_to_latent(EMB, [""], inpaint=InpaintCondition(z, keep), seeds=[9])
    standardise, noise = pipe.decoder.network.standardise, PerImageNoise([9], z.shape[1:])

    def denoise(x_t, t):
        guided = guide(lambda x, t: Denoised(x.sin(), None), scale)(x_t, t).x_0
        return Denoised(guided * (1 - keep) + standardise(z) * keep, None)

    walked = named(sampler)(denoise, next(noise), pipe.decoder.alpha_bar, 4, noise)
    expected = standardise.inverse(walked) * (1 - keep) + z * keep
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_the_official_sampler_clamps_then_puts_in_the_known_then_thresholds(real):
    """Kandinsky 2.1's order. The known, up to 3, is not clamped at 2, and its quantile counts: all is divided by 3."""
    standardised = torch.full((1, 48, 8, 8), 3.0)
    pipe = spoken(real, lambda x_t, t: torch.full_like(x_t, 5.0), sampler="ddpm_official", steps=1)
    keep = torch.zeros(1, 1, 8, 8)
    keep[..., :4] = 1
    inverse, steps = pipe.decoder.network.standardise.inverse, []
    options = {"inpaint": InpaintCondition(inverse(standardised), keep), "seeds": [9]}
    out = pipe.embedding_to_latent(EMB, [""], watch=lambda i, n, x_0: steps.append(x_0), **options)
    torch.testing.assert_close(out[..., 4:], inverse(torch.full((1, 48, 8, 4), 2 / 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(steps[-1][..., :4], inverse(torch.ones(1, 48, 8, 4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_inpainting_u_net_sees_the_known_latent_and_where_it_is(real, scale):
    """Channels as its stage trains them: x_t, z where known, keep; both halves of guidance alike."""
    z, keep = latent(), (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    pipe = spoken(real, grey, beside=49, scale=scale)
    pipe.embedding_to_latent(EMB.expand(2, -1), ["", ""], inpaint=InpaintCondition(z, keep), seeds=[3, 4])
    x_T = next(PerImageNoise([3, 4], z.shape[1:]))
    standardised = pipe.decoder.network.standardise(z)
    expected = torch.cat([x_T, standardised * keep, keep], dim=1)
    seen = pipe.decoder.network.seen
    assert torch.equal(seen[0][0], torch.cat([expected] * (1 if scale == 1 else 2)))
    assert all(torch.equal(x[:2, 48:], expected[:, 48:]) for x, _ in seen) and len(seen) == 10


def test_inpaint_hands_a_u_net_the_mask_of_each_image(real):
    pipe = spoken(real, grey, beside=49)
    images, masks = [photo(seed=1), photo(seed=2)], [right_third((32, 32)), right_third((32, 32)).rotate(90)]
    pipe.inpaint("a", images, masks, **PRIOR)
    beside = pipe.decoder.network.seen[0][0][:, 48:]
    for row, image, mask in zip(beside, images, masks, strict=True):
        keep = keep_of(mask, factor=4, rows=8, columns=8)
        pixels = torch.from_numpy(array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        z = pipe.decoder.network.standardise(pipe.movq.encode(pixels))[0]
        torch.testing.assert_close(row, torch.cat([z * keep, keep]))


@pytest.mark.parametrize("mode", ["text_to_image", "variations", "image_to_image"])
def test_other_modes_tell_an_inpainting_u_net_that_nothing_is_known(real, mode):
    pipe = spoken(real, grey, beside=49)
    inputs = {"text_to_image": (["a"],), "variations": (photo(), 1), "image_to_image": ("a", photo())}[mode]
    getattr(pipe, mode)(*inputs)
    assert all(x.shape[1] == 97 and not x[:, 48:].any() for x, _ in pipe.decoder.network.seen)


def test_a_u_net_of_other_channels_is_refused(real):
    told = r"reads 50 channels: for latents of 48 it should be 48 \(text to image\) or 97 \(inpainting"
    refused(told, spoken(real, grey, beside=2).text_to_image, ["a"])


def test_all_white_is_painted_whole_and_all_black_refused(real):
    pipe = spoken(real, grey)
    white, black = (Image.new("L", (32, 32), level) for level in (255, 0))
    [out] = pipe.inpaint("a", photo(), white, **PRIOR)
    assert same(out, pipe.text_to_image(["a"], **PRIOR)[0])
    refused("nowhere white", pipe.inpaint, "a", photo(), black)


def test_a_mask_of_another_size_is_refused(real):
    refused("a mask of 32x16 pixels for a picture of 32x32", real.inpaint, "a", photo(), Image.new("L", (32, 16), 255))


# ---- outpainting


def test_the_picture_stays_where_it_was_in_the_larger_one(real):
    """But for the latents that its new neighbours touch: one of 4 pixels, or two where a side cuts one."""
    pipe, image = spoken(real, grey), photo((40, 32))
    [out] = pipe.outpaint("a", image, left=16, right=5, top=0, bottom=8, **PRIOR)
    assert out.size == (61, 40)
    assert np.array_equal(array(out)[:28, 20:52], array(image)[:28, 4:36])
    assert same(out.crop((0, 0, 16, 40)), pipe.text_to_image("a", size=(16, 40), **PRIOR)[0])


@pytest.mark.parametrize(
    ("margins", "told"),
    [
        ({}, "all margins are 0, nothing is to be painted"),
        ({"left": -8}, "left=-8: a margin is a whole number of pixels, 0 or more"),
        ({"left": 8, "top": -1, "bottom": -2}, "top=-1, bottom=-2: a margin"),
        ({"right": 5000}, "a picture of 5032x32 pixels: sides are at most 4096 pixels; make it smaller"),
    ],
)
def test_margins_that_cannot_be(real, margins, told):
    refused(told, real.outpaint, "a", photo(), **margins)
