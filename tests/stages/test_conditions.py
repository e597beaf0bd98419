"""Condition dropout: exact at 0 and 1, the chances that were asked for, text apart from image."""

import torch
from fixtures.fitting import Repeated, fit, images, latents
from fixtures.system import stage

from open_kandinsky.core.draws import ALONE
from open_kandinsky.data.cache.folder import read_null
from open_kandinsky.loading import trained
from open_kandinsky.networks.unet import Context
from open_kandinsky.stages.conditioning import NullConditions

N = 20_000


def null(**conditions):
    made = NullConditions()
    made.set(**conditions)
    return made


def test_never_and_always_are_exact():
    text = torch.randn(64, 5, 3)
    made = null(text=torch.full((1, 5, 3), 7.0))
    (kept,), (dropped,) = made.drop(0.0, ALONE, text=text), made.drop(1.0, ALONE, text=text)
    assert torch.equal(kept, text) and torch.equal(dropped, torch.full_like(text, 7.0))


def test_what_goes_together_is_dropped_together():
    made = null(tokens=torch.zeros(1, 4), emb=torch.zeros(1, 2), mask=torch.zeros(1, 4, dtype=torch.bool))
    given = {"tokens": torch.ones(N, 4), "emb": torch.ones(N, 2), "mask": torch.ones(N, 4, dtype=torch.bool)}
    tokens, emb, mask = made.drop(0.3, ALONE, **given)
    kept = tokens[:, 0] == 1
    for value in (tokens, emb, mask):
        assert torch.equal(value != 0, kept.reshape(-1, 1).expand_as(value))
    assert mask.dtype == torch.bool


def test_a_decoder_drops_text_by_half_and_the_image_by_a_tenth_independently():
    """Standard errors at 20,000 are at most 0.0036: 0.015 is four of them."""
    torch.manual_seed(0)
    decoder = stage("decoder", "stage.drop_text=0.5", "stage.drop_image=0.1")
    assert (decoder.drop_text, decoder.drop_image) == (0.5, 0.1)
    decoder.null.set(image_emb=torch.zeros(1, 1), text_emb=torch.zeros(1, 1), text_tokens=torch.zeros(1, 1, 1))
    seen = []

    def context(image_emb, text_tokens, text_emb):
        seen.append((image_emb, text_tokens, text_emb))
        return Context(*[None] * len(Context._fields))

    decoder.network.context = context
    ones = {"image_emb": torch.ones(N, 1), "text_emb": torch.ones(N, 1), "text_tokens": torch.ones(N, 1, 1)}
    decoder.context(ones, ALONE)
    image, tokens, text = (value.flatten() == 0 for value in seen[0])
    assert torch.equal(tokens, text)
    for share, expected in ((text, 0.5), (image, 0.1), (text & image, 0.05), (~text & ~image, 0.45)):
        assert abs(share.float().mean() - expected) < 0.015


def test_a_prior_drops_text_by_a_tenth():
    torch.manual_seed(0)
    prior = stage("prior")
    shapes = {"text_tokens": (1, 1), "text_emb": (1,), "text_mask": (1,)}
    prior.null.set(**{name: torch.zeros(1, *shape) for name, shape in shapes.items()})
    prior.network.prefix = lambda *conditions: conditions
    _, text_emb, _ = prior.prefix(
        {name: torch.ones(N, *shape) for name, shape in shapes.items()}, prior.drop_text, ALONE
    )
    assert abs((text_emb == 0).float().mean() - 0.1) < 0.01


def test_the_null_conditions_are_the_encoders_own(cached, system):
    """The empty caption, and the all-zero image after CLIP's normalisation."""
    clip, found = trained(system / "clip"), read_null(cached / "cache" / "train")
    text = clip.encode_text([""])
    for name, value in (("text_tokens", text.tokens), ("text_emb", text.emb), ("text_mask", text.mask)):
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    torch.testing.assert_close(found["image_emb"], clip.encode_image(torch.zeros(1, 3, 32, 32)), rtol=0, atol=0)


def test_statistics_reach_the_network_and_travel_with_it():
    for part, field, switch in (("prior", "image_emb", []), ("decoder", "z", ["stage.standardise=true"])):
        batch, made = latents(4), stage(part, *switch)
        fit(made, batch, 1)
        mean, std = Repeated(batch).statistics(field)
        state = made.network.state_dict()
        assert torch.equal(state["standardise.mean"], mean) and torch.equal(state["standardise.std"], std)


def test_kandinskys_latents_are_left_as_they_are():
    made = stage("decoder", "stage.standardise=false")
    fit(made, latents(4), 1)
    assert made.network.standardise.std.eq(1).all() and made.network.standardise.mean.eq(0).all()


def test_what_is_frozen_or_comes_with_the_data_is_outside_the_state_dict():
    for part in ("prior", "decoder"):
        made = stage(part)
        fit(made, latents(4), 1)
        assert all(key.startswith("network.") for key in made.state_dict()), part
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    movq = stage("movq")
    movq.pixel_loss.perceptual = [frozen]
    assert {key.partition(".")[0] for key in movq.state_dict()} == {"network", "discriminator", "usage"}
    assert all(parameter is not frozen.weight for parameter in movq.parameters())
    fit(movq, images(4), 1)
