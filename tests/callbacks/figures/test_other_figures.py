"""A decoder's loss by timestep, its pictures' distance, and an autoencoder's codes: known forms on tiny stages."""

import pytest
import torch
from fixtures.fitting import Repeated, images, latents, trainer
from fixtures.system import stage
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch.utils.data import DataLoader

from open_kandinsky.callbacks.preview import Drawings
from open_kandinsky.callbacks.validation import CacheClipFeatures, Codes, FrechetOfDrawings, LossByTimestep, Perceptual
from open_kandinsky.metrics.frechet import frechet_distance


@pytest.fixture(scope="module")
def decoder():
    """Nothing trains it."""
    return stage("decoder", "stage.standardise=false")


@pytest.fixture(scope="module")
def movq():
    return stage("movq")


def validated(made, batches, *callbacks, times=1):
    data = Repeated(latents())
    data.val_dataloader = lambda: DataLoader(batches, batch_size=None)
    run = trainer(1, *callbacks)
    return [run.validate(made, datamodule=data, verbose=False)[0] for _ in range(times)]


def test_the_bins_weighted_by_their_counts_are_the_loss(decoder):
    bins, counts = LossByTimestep(bins=4), []

    class Counts(LossByTimestep):
        def on_validation_epoch_end(self, run, module):
            counts.extend(self.means.n.tolist())
            self.means = None

    (found,) = validated(decoder, [latents()] * 40, bins, Counts(bins=4))
    means = [value for name, value in sorted(found.items()) if name.startswith("val/loss_t")]
    assert len(means) == 4 and sum(counts) == 320
    weighted = sum(mean * n for mean, n in zip(means, counts, strict=True)) / sum(counts)
    assert weighted == pytest.approx(found["val/loss"], rel=1e-5)


def test_codes_of_pictures_that_are_one_and_of_all(movq, monkeypatch):
    """The nearest code of each latent is given; there are 32 codes."""
    pixels = {"pixels": images(4)["pixels"], "key": ["k"] * 4}
    spread = torch.arange(32).repeat(8).view(4, 8, 8)
    for index, used, perplexity in ((spread, 1.0, 32.0), (torch.zeros_like(spread), 1 / 32, 1.0)):
        monkeypatch.setattr(movq.network.codebook, "nearest", lambda z, index=index: index)
        (found,) = validated(movq, [pixels] * 2, Codes())
        assert found["val/codes_used"] == pytest.approx(used)
        assert found["val/code_perplexity"] == pytest.approx(perplexity)


class Apart(torch.nn.Module):
    """In place of LPIPS: the mean absolute difference."""

    def forward(self, x, y):
        return (x - y).abs().mean()


def test_a_perceptual_distance_is_the_mean_over_pictures(movq):
    """In batches of 3 and of 1; a mean absolute difference is twice the stage's own L1, which is of [0, 1]."""
    pixels = images(4)["pixels"]
    batches = [{"pixels": part, "key": ["k"] * len(part)} for part in pixels.split(3)]
    (found,) = validated(movq, batches, Perceptual(distance=Apart()))
    assert found["val/lpips"] == pytest.approx(2 * found["val/l1"], rel=1e-4)


class Given(Drawings):
    """In place of drawing: each sample's true latent, moved."""

    def __init__(self, moved):
        self.moved = moved

    def sample(self, stage, batch, seeds):
        self.seeds = list(seeds)
        return stage.network.standardise(batch["z"]) + self.moved

    def to_pixels(self, network, z):
        return z[:, :3]


class Means:
    """Features: of a picture the means of its channels, of a batch those of its true latent."""

    name = "means"

    def drawn(self, pixels):
        return pixels.mean((2, 3))

    def real(self, batch):
        return batch["z"][:, :3].mean((2, 3))


def frechet(moved, count=6, every=1):
    return FrechetOfDrawings(every=every, count=count, draw=Given(moved), features=Means())


def pair():
    """Eight latents in batches of three."""
    whole = latents()
    return [{name: value[at : at + 3] for name, value in whole.items()} for at in (0, 3, 6)]


def test_a_decoder_that_draws_the_truth_has_distance_nought_and_one_that_misses_by_a_shift_its_square(decoder):
    for moved, distance in ((0.0, 0.0), (0.5, 3 * 0.25)):
        (found,) = validated(decoder, pair(), frechet(moved))
        assert found["val/frechet_means"] == pytest.approx(distance, abs=1e-6)


def test_it_is_the_distance_of_the_first_ones_alone(decoder, monkeypatch):
    callback, z = frechet(0.0, count=4), latents()["z"][:4, :3].mean((2, 3))
    monkeypatch.setattr(callback.features, "drawn", lambda pixels: 2 * pixels.mean((2, 3)))
    (found,) = validated(decoder, pair(), callback)
    assert found["val/frechet_means"] == pytest.approx(frechet_distance(z, 2 * z), rel=1e-5)


def test_every_other_validation(decoder):
    found = validated(decoder, pair(), frechet(0.0, every=2), times=4)
    assert ["val/frechet_means" in each for each in found] == [True, False, True, False]


def test_its_place_is_kept_and_one_picture_is_refused():
    before, after = frechet(0.0), frechet(0.0)
    before.validations = 3
    after.load_state_dict(before.state_dict())
    assert after.validations == 3
    with pytest.raises(ValueError, match="count=1: a Frechet distance needs two pictures"):
        frechet(0.0, count=1)


class Flat(torch.nn.Module):
    """In place of CLIP."""

    def encode_image(self, clip_pixels):
        return clip_pixels.flatten(1)


def test_pictures_enter_clip_as_files_do_and_no_random_number_is_taken():
    """Rounded to 8 bits, through the very preparation that the cache's pictures went through."""
    seen = []

    def prepare(image: Image.Image):
        seen.append(image)
        return torch.full((3, 2, 2), float(image.getpixel((0, 0))[0]))

    def clip():
        torch.rand(3)
        return Flat()

    with isolate_rng():
        torch.manual_seed(0)
        features = CacheClipFeatures(clip=clip, prepare=prepare)
        after = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(1))
    drawn = features.drawn(torch.tensor([-1.0, 1.0, 7.0])[:, None, None, None].expand(3, 3, 8, 8))
    assert drawn.shape == (3, 12) and drawn[:, 0].tolist() == [0.0, 255.0, 255.0]
    assert [image.size for image in seen] == [(8, 8)] * 3
    assert torch.equal(features.real(latents()), latents()["image_emb"])
