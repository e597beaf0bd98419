"""What is drawn from which embedding, away from what, in any batch, with and without text; and what cannot be drawn."""

import pytest
import torch
from fixtures.pictures import photo, refused, right_third, same
from fixtures.system import nothing_at_zero, spoken
from PIL import Image

from open_kandinsky.loading import load
from open_kandinsky.networks.condition import ImageCondition
from open_kandinsky.networks.unet import UNet
from open_kandinsky.pipeline import Diffusion, Pipeline

EMB = torch.zeros(1, 32)


@pytest.fixture(scope="module")
def real(system):
    return load(system)


@pytest.fixture(scope="module")
def exact(system):
    """In float64: random weights can make a batch's rounding in float32 into several levels of 256."""
    return load(system, dtype=torch.float64)


def grey(x_t, t):
    return torch.zeros_like(x_t)


# ---- interpolation and mixing


@pytest.fixture
def embeddings(real, monkeypatch):
    """A pipeline that writes down the embeddings that it draws from."""
    pipe, drawn = spoken(real, grey), []
    decode = pipe.embedding_to_latent
    monkeypatch.setattr(
        pipe, "embedding_to_latent", lambda emb, *a, **k: drawn.append((emb, k)) or decode(emb, *a, **k)
    )
    return pipe, drawn


def test_embeddings_evenly_between_two(embeddings):
    pipe, drawn = embeddings
    ends = [pipe.image_to_embedding([photo(seed=1)])[0], pipe.text_to_embedding(["a red circle"], seeds=[0])[0]]
    assert len(pipe.interpolate(photo(seed=1), "a red circle", 5)) == 5
    [(emb, options)] = drawn
    assert list(options["seeds"]) == [0] * 5
    expected = torch.stack([ends[0] + (ends[1] - ends[0]) * i / 4 for i in range(5)])
    torch.testing.assert_close(emb, expected, rtol=0, atol=1e-5)


def test_the_ends_are_variations_and_what_lies_between_is_neither(real):
    a, b = photo(seed=1), photo(seed=2)
    options = {"steps": 2, "sampler": "ddim"}
    three = real.interpolate(a, b, 3, **options)
    first, last = (real.variations(end, 1, **options)[0] for end in (a, b))
    assert same(three[0], first) and same(three[2], last)
    assert not same(three[1], first) and not same(three[1], last)
    [again] = real.between(a, b, [0.5], **options)
    assert same(again, three[1])
    [other] = real.between(a, b, [0.5], seeds=[1], **options)
    assert not same(other, three[1])


def test_fewer_than_two_pictures_have_no_between(real):
    refused("n=1, at least 2", real.interpolate, "a", "b", 1)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_that_mean_nothing(real, weights):
    refused("give finite numbers that are not all 0", real.mix, ["a", "b"], weights)


def test_a_weighted_sum_is_not_normalised(embeddings):
    pipe, drawn = embeddings
    emb = pipe.image_to_embedding([photo(seed=1), photo(seed=2)])
    pipe.mix([photo(seed=1), photo(seed=2)], [2, -0.5], n=2)
    torch.testing.assert_close(drawn[0][0], (2 * emb[0] - 0.5 * emb[1]).expand(2, -1), rtol=0, atol=1e-5)


# ---- guidance of the decoder


def test_the_decoder_is_guided_away_from_no_picture_or_from_a_prompt(real):
    pipe = spoken(real, grey, scale=3.0)
    options = {"seeds": [3, 4], "negative_prompt": "a triangle"}
    for negative in ("", "a blue square"):
        pipe.text_to_image(["a", "b"], negative_decoder_prompt=negative, prior_steps=2, prior_scale=2.0, **options)
    nothing = real.clip.null_image().expand(2, -1)
    square = pipe.text_to_embedding(["a blue square"] * 2, steps=2, scale=2.0, **options)
    for (emb, tokens, text_emb), away in zip(pipe.decoder.network.contexts, (nothing, square), strict=True):
        torch.testing.assert_close(emb[2:], away)
        empty = real.clip.encode_text(["a", "b", "", ""])
        torch.testing.assert_close(tokens, empty.tokens)
        torch.testing.assert_close(text_emb, empty.emb)


def test_prior_and_decoder_have_samplers_of_their_own(embeddings):
    pipe, drawn = embeddings
    pipe.text_to_image(["a"], prior_sampler="ddim", prior_steps=3, sampler="dpmpp_2m", seeds=[5])
    expected, other = (pipe.text_to_embedding(["a"], sampler=name, steps=3, seeds=[5]) for name in ("ddim", "ddpm"))
    assert drawn[-1][0].equal(expected) and not drawn[-1][0].equal(other)


# ---- the same picture in any batch


@pytest.fixture(scope="module")
def scenes():
    """Two of one size and one of another, each with its prompt, mask and seed."""
    images = [photo((32, 32), 1), photo((41, 24), 2), photo((32, 32), 3)]
    masks = [right_third(images[0].size), right_third(images[1].size), right_third((32, 32)).rotate(90)]
    return ["a red circle", "a blue square", "a green cross"], images, masks, [7, 2**32 - 1, 0]


EDITS = {
    "text_to_image": lambda pipe, p, i, m, **o: pipe.text_to_image(p, **o),
    "image_to_image": lambda pipe, p, i, m, **o: pipe.image_to_image(p, i, 0.5, **o),
    "inpaint": lambda pipe, p, i, m, **o: pipe.inpaint(p, i, m, **o),
    "outpaint": lambda pipe, p, i, m, **o: pipe.outpaint(p, i, left=8, bottom=3, **o),
    "negative": lambda pipe, p, i, m, **o: pipe.text_to_image(p, negative_decoder_prompt="a red cross", **o),
}


@pytest.mark.parametrize("mode", EDITS)
def test_a_picture_is_the_same_alone_as_in_a_batch(exact, scenes, mode):
    options = {"steps": 4, "prior_steps": 2, "sampler": "ddim"}
    prompts, images, masks, seeds = scenes
    together = EDITS[mode](exact, prompts, images, masks, seeds=seeds, **options)
    for one, *scene, seed in zip(together, *scenes, strict=True):
        [alone] = EDITS[mode](exact, *([thing] for thing in scene), seeds=[seed], **options)
        assert same(one, alone)
    assert not same(together[0], together[2])


def test_an_embedding_is_the_same_alone_as_in_a_batch(exact, scenes):
    options = {"seeds": [4, 4, 4], "steps": 4, "sampler": "ddim"}
    for i, one in enumerate(exact.interpolate(scenes[1][0], "a red circle", 3, **options)):
        [alone] = exact.between(scenes[1][0], "a red circle", [i / 2], seeds=[4], steps=4, sampler="ddim")
        assert same(one, alone)
    mixed = exact.mix([scenes[1][0], "a red circle"], [0.5, 0.7], n=3, steps=4, sampler="ddim")
    [alone] = exact.mix([scenes[1][0], "a red circle"], [0.5, 0.7], seeds=[2], steps=4, sampler="ddim")
    assert same(mixed[2], alone)


def test_the_official_ancestral_sampler_is_the_exception(real):
    """x_0 is rescaled by the first image's quantile: the second of two is not what it is alone."""
    x_0 = torch.stack([torch.full((48, 8, 8), 1.8), torch.full((48, 8, 8), 0.5)])
    pipe = spoken(real, None, sampler="ddpm_official")
    pipe.decoder.network.answer = lambda x_t, t: x_0[-len(x_t) :]
    both = pipe.embedding_to_latent(EMB.expand(2, -1), ["", ""], seeds=[1, 2])
    alone = pipe.embedding_to_latent(EMB, [""], seeds=[2])
    inverse = pipe.decoder.network.standardise.inverse
    torch.testing.assert_close(both, inverse(x_0 / 1.8), rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, inverse(x_0[1:]), rtol=0, atol=1e-5)


# ---- Kandinsky 2.2


@pytest.fixture
def without_text(real):
    torch.manual_seed(0)
    condition = ImageCondition(image_dim=32, image_tokens=4, context=32, emb=64)
    shape = {"in_channels": 4, "out_channels": 4, "latent_channels": 4, "channels": 32, "multipliers": [1, 1]}
    attention = {"blocks": 1, "attention_levels": [1], "head_channels": 16, "context": 32, "emb": 64}
    network = UNet(condition=condition, **shape, **attention).requires_grad_(False).eval()
    nothing_at_zero(network)
    own = real.decoder
    decoder = Diffusion(network, own.alpha_bar, own.parameterisation, own.sampling)
    return Pipeline(clip=real.clip, text=None, prior=real.prior, decoder=decoder, movq=real.movq, size=32, device="cpu")


def test_a_decoder_without_text_draws_in_every_mode(without_text):
    pipe, options = without_text, {"steps": 2, "scale": 3.0}
    made = pipe.text_to_image(["a", "b"], **options) + pipe.variations(photo(), 1, **options)
    made += pipe.image_to_image("a", photo(), 0.5, **options) + pipe.inpaint(
        "a", photo(), right_third((32, 32)), **options
    )
    assert [image.size for image in made] == [(32, 32)] * 5


def test_a_decoder_without_text_does_not_look_at_the_prompt(without_text):
    emb = without_text.text_to_embedding(["a red circle"], steps=2)
    one, two = (without_text.embedding_to_latent(emb, [p], steps=2) for p in ("a red circle", "another"))
    assert torch.equal(one, two)
    assert not torch.equal(one, without_text.embedding_to_latent(emb + 1, ["another"], steps=2))


# ---- what cannot be drawn


def test_pictures_of_sizes_that_cannot_be(real):
    large = "a picture of 4097x8 pixels: sides are at most 4096 pixels; make it smaller"
    small = "a picture of 40x7 pixels: sides are at least 8 pixels; enlarge it"
    for image, told in ((Image.new("RGB", (4097, 8)), large), (Image.new("RGB", (40, 7)), small)):
        white = Image.new("L", image.size, 255)
        refused(told, real.image_to_image, "a", image)
        refused(told, real.inpaint, "a", image, white)
        refused(told, real.outpaint, "a", image, left=8)
    one = Image.new("RGB", (1, 1))
    refused("a picture of 1x1 pixels", real.variations, one, 1)
    refused("a picture of 1x1 pixels", real.mix, [one, "a"], [0.5, 0.5])
    refused("a picture of 1x1 pixels", real.interpolate, one, "a", 2)


def test_numbers_of_things_that_do_not_go_together(real):
    refused("no prompts: nothing to draw", real.text_to_image, [])
    refused("no images: nothing to draw", real.image_to_image, "a", [])
    refused(
        "2 prompts, 3 images: give one for all pictures, or one for each", real.image_to_image, ["a"] * 2, [photo()] * 3
    )
    refused("1 prompts, 2 images, 3 masks", real.inpaint, "a", [photo()] * 2, [right_third((32, 32))] * 3)
    refused("2 seeds for 1 images", real.image_to_image, "a", photo(), seeds=[1, 2])
    refused("n=0: a whole number, at least 1", real.variations, photo(), 0)


def test_an_edited_picture_has_no_other_size(real):
    refused(
        "an edited picture keeps its image's size; leave size out", real.image_to_image, "a", photo(), size=(64, 64)
    )


def test_an_option_that_there_is_not(real):
    with pytest.raises(TypeError, match="stepz"):
        real.text_to_image(["a"], stepz=3)
