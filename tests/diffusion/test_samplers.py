"""Samplers: what they ask for, where they end, and the denoiser that already knows the answer."""

import pytest
import torch
from fixtures.noise import normal, silence

from open_kandinsky.diffusion import samplers, schedule
from open_kandinsky.diffusion.parameterisation import Denoised
from open_kandinsky.diffusion.process import diffuse
from open_kandinsky.diffusion.samplers import SAMPLERS, PerImageNoise, ddim, ddpm, dpmpp_2m, named, plms

LINEAR = schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012)
ALL = [ddpm, ddim, plms, dpmpp_2m]


def says(x_0):
    return lambda x_t, t: Denoised(x_0, None)


@pytest.mark.parametrize("walk", ALL)
@pytest.mark.parametrize("spacing", [samplers.spaced, samplers.descending])
@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_a_denoiser_that_is_sure_has_its_way(walk, spacing, steps):
    x_0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    noise = iter(torch.randn(30, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    out = walk(says(x_0), next(noise), spacing(LINEAR, steps), noise)
    torch.testing.assert_close(out, x_0, rtol=0, atol=1e-9)


def test_leading_grids_end_one_step_before_clean():
    """As the official ones: with the noise that alpha_bar at t = 0 leaves."""
    x_0, x_T = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = samplers.leading(LINEAR, 10)
    eps = (x_T - LINEAR[901].sqrt() * x_0) / (1 - LINEAR[901]).sqrt()
    expected = diffuse(x_0, eps, LINEAR[:1].expand(3))
    for walk in (ddim, plms, dpmpp_2m):
        torch.testing.assert_close(walk(says(x_0), x_T, grid, silence()), expected, rtol=1e-9, atol=1e-9)


def test_ddpm_ends_on_the_last_estimate_and_asks_for_no_noise():
    asked = []

    def noise():
        while True:
            asked.append(1)
            yield torch.ones(2, 1, dtype=torch.float64)

    estimates = []

    def denoise(x_t, t):
        estimates.append(x_t.tanh())
        return Denoised(estimates[-1], None)

    out = ddpm(denoise, torch.ones(2, 1, dtype=torch.float64), samplers.spaced(LINEAR, 7), noise())
    assert len(estimates) == 7
    assert len(asked) == 6
    torch.testing.assert_close(out, estimates[-1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("walk", ALL)
def test_one_step_is_one_call_at_the_greatest_time(walk):
    times = []

    def denoise(x_t, t):
        times.append(t.tolist())
        return Denoised(x_t * 0 + 3, None)

    out = walk(denoise, torch.ones(2, 1, dtype=torch.float64), samplers.spaced(LINEAR, 1), silence())
    assert times == [[999, 999]]
    torch.testing.assert_close(out, torch.full((2, 1), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(("walk", "calls"), [(ddpm, 6), (ddim, 6), (plms, 7), (dpmpp_2m, 6)])
def test_calls_of_the_network(walk, calls):
    """plms makes one more: its first step is Heun's."""
    times = []

    def denoise(x_t, t):
        times.append(int(t[0]))
        return Denoised(x_t * 0.5, None)

    walk(denoise, torch.ones(1, 1, dtype=torch.float64), samplers.spaced(LINEAR, 6), normal(1, 1))
    assert len(times) == calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_named_sampler_keeps_precision_and_images_apart(name):
    """Float32 in, float32 out; and an image is the same alone as in a batch."""

    def shrinks(x_t, t):
        return Denoised(x_t.tanh() * (t[:, None] / 2000 + 0.5), None)

    def run(seeds):
        noise = PerImageNoise(seeds, (1,))
        return named(name)(shrinks, next(noise), LINEAR, 10, noise)

    together = run([3, 4])
    assert together.dtype == torch.float32
    assert together[1:].equal(run([4]))


def test_the_official_ancestral_sampler_clamps_and_thresholds_by_the_first():
    """One step from T-1 returns x_0 itself: of 101 numbers up to 5 the quantile 0.995 is, clamped, 2."""
    wide = torch.stack([torch.linspace(-5, 5, 101), torch.linspace(-1, 1, 101)]).double()

    def run(x_0):
        return named("ddpm_official")(says(x_0), torch.ones_like(x_0), LINEAR, 1, silence())

    torch.testing.assert_close(run(wide), torch.stack([wide[0].clamp(-2, 2) / 2, wide[1] / 2]))
    torch.testing.assert_close(run(wide.flip(0)), torch.stack([wide[1], wide[0].clamp(-1, 1)]))
    torch.testing.assert_close(run(wide[1:]), wide[1:])


def test_the_official_ancestral_sampler_is_the_plain_one_within_its_limits():
    noises = list(torch.randn(11, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def denoise(x_t, t):
        return Denoised(x_t.tanh(), None)

    plain, own = (named(name)(denoise, noises[0], LINEAR, 10, iter(noises[1:])) for name in ("ddpm", "ddpm_official"))
    assert torch.equal(plain, own)


def test_the_official_ddim_takes_as_many_steps_as_it_did():
    times = []

    def denoise(x_t, t):
        times.append(int(t[0]))
        return Denoised(x_t * 0.5, None)

    named("ddim_official")(denoise, torch.ones(1, 1, dtype=torch.float64), LINEAR, 30, silence())
    assert times == [33 * i + 1 for i in range(31)][::-1]


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="sampler='dimm': no such sampler; did you mean 'ddim'"):
        named("dimm")
    with pytest.raises(ValueError, match="sampler='euler_a': no such sampler; there are ddpm"):
        named("euler_a")


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_timestep_is_visited_twice_at_any_number_of_steps(name):
    """At steps = T the grid of dpmpp_2m would have had t = 500 twice, and pictures of NaN."""
    for n in range(1, len(LINEAR) + 1):
        try:
            grid = SAMPLERS[name].spacing(LINEAR, n)
        except ValueError as refusal:
            assert f"steps={n}" in str(refusal)
            continue
        assert (grid.t.diff() < 0).all() and 0 <= grid.t.min() and grid.t.max() < len(LINEAR)
        assert (grid.alpha_bar.diff() > 0).all()
