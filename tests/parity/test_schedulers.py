"""Our samplers against diffusers' schedulers: the same denoiser, first noise and noises, in float64.

Their tables are computed in float32, up to 2e-7 off where betas are linear and 1e-5 in the cosine's end, which costs up
to 3e-7 of what is sampled (measured, DDIM and PNDM). That is their rounding and no difference of method, so their
`alphas_cumprod` (and `betas`, `alphas`) are overwritten with our float64 ones.
"""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UnCLIPScheduler,
)
from fixtures.theirs import in_float64

from open_kandinsky.diffusion import samplers, schedule
from open_kandinsky.diffusion.denoise import clamp, denoiser, dynamic_threshold
from open_kandinsky.diffusion.parameterisation import X0, Eps, LearnedRange
from open_kandinsky.diffusion.samplers import ddim, ddpm, dpmpp_2m, plms

LINEAR = schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012)
COSINE = schedule.cosine(T=1000, s=0.008, beta_max=0.999)
DECODER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
LEADING = {"set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
SHAPE = (2, 3, 4, 4)


def network(x_t, t):
    """Smooth, not linear, different at every time and in every channel."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1) / 1000
    channel = torch.arange(x_t.shape[1], dtype=torch.float64).reshape(1, -1, 1, 1)
    return torch.tanh(0.7 * x_t + 0.2 * channel * t) + 0.3 * torch.sin(2 * x_t + 3 * t)


def with_variance(x_t, t):
    return torch.cat([network(x_t, t), torch.cos(x_t.flip(1) + torch.as_tensor(t).reshape(-1, 1, 1, 1))], dim=1)


@pytest.fixture
def noises():
    """The first is x_T."""
    return list(torch.randn(60, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def theirs(monkeypatch, noises):
    """diffusers' loop: network, step. Its random tensors are `noises` from the second on."""

    def run(scheduler, predict, module=None, **each):
        feed = iter(noises[1:])
        if module is not None:
            monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: next(feed))
        x = noises[0]
        steps = scheduler.timesteps.tolist()
        for t, after in zip(steps, [*steps[1:], None], strict=True):
            arguments = {name: give(after) for name, give in each.items()}
            x = scheduler.step(predict(x, t), t, x, **arguments).prev_sample
        return x

    return run


def ours(walk, denoise, grid, noises):
    return walk(denoise, noises[0], grid, iter(noises[1:]))


def assert_same(a, b, rel):
    assert float((a - b).abs().max() / b.abs().max()) < rel


@pytest.mark.parametrize("steps", [10, 30, 50])
def test_ddim(theirs, noises, steps):
    """Kandinsky 2.1's own: the last step leads to alpha_bar at t = 0."""
    scheduler = in_float64(DDIMScheduler(**DECODER, **LEADING, clip_sample=False), LINEAR)
    scheduler.set_timesteps(steps)
    grid = samplers.leading(LINEAR, steps)
    assert grid.t.tolist() == scheduler.timesteps.tolist()
    assert_same(ours(ddim, denoiser(network, Eps(), LINEAR), grid, noises), theirs(scheduler, network), rel=1e-11)


def test_ddim_with_noise(theirs, noises):
    def noisy(*a):
        return ddim(*a, eta=0.7)

    scheduler = in_float64(DDIMScheduler(**DECODER, **LEADING, clip_sample=False), LINEAR)
    scheduler.set_timesteps(20)
    reference = theirs(scheduler, network, "scheduling_ddim", eta=lambda _: 0.7)
    mine = ours(noisy, denoiser(network, Eps(), LINEAR), samplers.leading(LINEAR, 20), noises)
    assert_same(mine, reference, rel=1e-11)


@pytest.mark.parametrize("steps", [5, 25])
@pytest.mark.parametrize("threshold", [False, True])
def test_ddpm_with_a_learned_variance(theirs, noises, steps, threshold):
    """Kandinsky 2.1's ancestral decoder, thresholding included, given the official grid."""
    more = {"thresholding": threshold, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 100.0}
    scheduler = DDPMScheduler(**DECODER, variance_type="learned_range", clip_sample=False, **more)
    in_float64(scheduler, LINEAR).set_timesteps(timesteps=samplers.spaced(LINEAR, steps).t.tolist())
    denoise = denoiser(with_variance, LearnedRange(Eps()), LINEAR)
    denoise = dynamic_threshold(denoise, 0.9) if threshold else denoise
    reference = theirs(scheduler, with_variance, "scheduling_ddpm")
    mine = ours(ddpm, denoise, samplers.spaced(LINEAR, steps), noises)
    assert_same(mine, reference, rel=1e-6 if threshold else 1e-11)  # our quantile is float32: measured 1e-7


def test_ddpm_with_a_fixed_variance(theirs, noises):
    """Kandinsky 2.2's decoder, whose variance head goes unused."""
    scheduler = DDPMScheduler(**DECODER, variance_type="fixed_small", clip_sample=True, clip_sample_range=2.0)
    in_float64(scheduler, LINEAR).set_timesteps(timesteps=samplers.spaced(LINEAR, 25).t.tolist())
    denoise = clamp(denoiser(network, Eps(), LINEAR), 2.0)
    reference = theirs(scheduler, network, "scheduling_ddpm")
    assert_same(ours(ddpm, denoise, samplers.spaced(LINEAR, 25), noises), reference, rel=1e-11)


@pytest.mark.parametrize("steps", [5, 25])
def test_unclip_as_the_prior(theirs, noises, steps):
    """Cosine, predicting x_0, which is clamped at 10."""
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0)
    in_float64(scheduler, COSINE).set_timesteps(steps)
    grid = samplers.spaced(COSINE, steps)
    assert grid.t.tolist() == scheduler.timesteps.tolist()

    def wide(x_t, t):
        return 9 * network(x_t, t)  # so that the clamp has something to do

    reference = theirs(scheduler, wide, "scheduling_unclip", prev_timestep=lambda after: after)
    assert_same(ours(ddpm, clamp(denoiser(wide, X0(), COSINE), 10.0), grid, noises), reference, rel=1e-11)


def test_unclip_with_a_learned_variance(theirs, noises):
    scheduler = UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon", clip_sample=False)
    in_float64(scheduler, LINEAR).set_timesteps(20)
    denoise = denoiser(with_variance, LearnedRange(Eps()), LINEAR)
    reference = theirs(scheduler, with_variance, "scheduling_unclip", prev_timestep=lambda after: after)
    assert_same(ours(ddpm, denoise, samplers.spaced(LINEAR, 20), noises), reference, rel=1e-11)


@pytest.mark.parametrize("steps", [3, 10, 50])
def test_plms(theirs, noises, steps):
    """Theirs lists the second timestep twice, since Heun's first step calls the network there too: so does ours."""
    scheduler = in_float64(PNDMScheduler(**DECODER, **LEADING, skip_prk_steps=True), LINEAR)
    scheduler.set_timesteps(steps)
    grid = samplers.leading(LINEAR, steps)
    t = grid.t.tolist()
    assert scheduler.timesteps.tolist() == [t[0], t[1], t[1], *t[2:]]
    assert_same(ours(plms, denoiser(network, Eps(), LINEAR), grid, noises), theirs(scheduler, network), rel=1e-10)


class Torch64:
    """torch, in which float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_dpmpp_2m(theirs, noises, steps, monkeypatch):
    """Theirs rounds sigmas and samples to float32 by name: the sigmas are overwritten, and the name."""
    monkeypatch.setattr("diffusers.schedulers.scheduling_dpmsolver_multistep.torch", Torch64())
    scheduler = DPMSolverMultistepScheduler(
        **DECODER, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace", final_sigmas_type="zero"
    )
    in_float64(scheduler, LINEAR).set_timesteps(steps)
    grid = samplers.descending(LINEAR, steps)
    assert grid.t.tolist() == scheduler.timesteps.tolist()
    scheduler.sigmas = ((1 - grid.alpha_bar) / grid.alpha_bar).sqrt()
    assert_same(ours(dpmpp_2m, denoiser(network, Eps(), LINEAR), grid, noises), theirs(scheduler, network), rel=1e-10)
