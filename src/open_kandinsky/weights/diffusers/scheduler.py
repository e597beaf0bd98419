"""diffusers' scheduler_config.json as our schedule, parameterisation and sampling, and ours as theirs."""

from collections.abc import Mapping
from typing import Any

from open_kandinsky.core.errors import UserError

Config = Mapping[str, Any]
DIFFUSION = "open_kandinsky.diffusion"
LINEAR, COSINE = f"{DIFFUSION}.schedule.linear", f"{DIFFUSION}.schedule.cosine"
PREDICTIONS = {"sample": "X0", "epsilon": "Eps", "v_prediction": "V"}
VARIANCES = {"learned_range": "LearnedRange", "fixed_small": "UnusedRange", "fixed_small_log": "UnusedRange"}
SAMPLERS = {
    "UnCLIPScheduler": "ddpm",
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "plms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
OF_DDIM = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False}
DEFAULTS = "sampling.json"  # of ours, beside their folders: theirs has no place for steps and scale
# Their cosine has these two numbers, which its config does not give.
COSINE_NUMBERS = {"s": 0.008, "beta_max": 0.999}


def diffusion(cfg: Config, where: str, *, with_variance: bool) -> dict[str, Any]:
    """`stage` and `sampling` of a part. ValueError for a scheduler that is none of Kandinsky's and cannot be ours."""
    name = cfg.get("_class_name")
    if name not in SAMPLERS:
        raise UserError(f"{where}: {name} is not known; known are {', '.join(SAMPLERS)}")
    if cfg.get("rescale_betas_zero_snr"):
        raise UserError(f"{where}: rescale_betas_zero_snr is true; no schedule of ours is made so")
    mean = parameterisation(cfg, where)
    stage = {"alpha_bar": alpha_bar(cfg, where), "parameterisation": mean}
    if with_variance:
        stage["parameterisation"] = {"_target_": f"{DIFFUSION}.parameterisation.{variance(cfg, where)}", "mean": mean}
    return {"stage": stage, "sampling": {"sampler": SAMPLERS[name], "clamp": clamp(cfg)}}


def alpha_bar(cfg: Config, where: str) -> dict[str, Any]:
    if cfg.get("trained_betas") is not None:
        raise UserError(f"{where}: trained_betas are given; schedules here are linear or cosine (squaredcos_cap_v2)")
    T = cfg.get("num_train_timesteps", 1000)
    default = "squaredcos_cap_v2" if cfg["_class_name"] == "UnCLIPScheduler" else "linear"
    name = cfg.get("beta_schedule", default)
    if name == "linear":
        betas = {"beta_min": cfg.get("beta_start", 0.0001), "beta_max": cfg.get("beta_end", 0.02)}
        return {"_target_": LINEAR, "T": T, **betas}
    if name == "squaredcos_cap_v2":
        return {"_target_": COSINE, "T": T, **COSINE_NUMBERS}
    raise UserError(f"{where}: beta_schedule is {name!r}; known are 'linear' and 'squaredcos_cap_v2'")


def parameterisation(cfg: Config, where: str) -> dict[str, Any]:
    default = "sample" if cfg["_class_name"] == "UnCLIPScheduler" else "epsilon"
    name = cfg.get("prediction_type", default)
    if name not in PREDICTIONS:
        raise UserError(f"{where}: prediction_type is {name!r}; known are {', '.join(PREDICTIONS)}")
    return {"_target_": f"{DIFFUSION}.parameterisation.{PREDICTIONS[name]}"}


def variance(cfg: Config, where: str) -> str:
    """What becomes of a variance that the network predicts; solvers without noise have no use for it."""
    if cfg["_class_name"] not in ("DDPMScheduler", "UnCLIPScheduler"):
        return "LearnedRange"
    name = cfg.get("variance_type", "fixed_small")
    if name not in VARIANCES:
        raise UserError(f"{where}: variance_type is {name!r}; known are {', '.join(VARIANCES)}")
    return VARIANCES[name]


def clamp(cfg: Config) -> float | None:
    """On |x_0|; the default of each class that has one is to clamp at 1."""
    clamps = cfg.get("clip_sample", cfg["_class_name"] in ("UnCLIPScheduler", "DDPMScheduler", "DDIMScheduler"))
    return float(cfg.get("clip_sample_range", 1.0)) if clamps else None


def as_prior_scheduler(stage: Config, sampling: Config) -> dict[str, Any]:
    """UnCLIPScheduler's. ValueError for what KandinskyPriorPipeline does not do: anything but cosine and x_0."""
    found = stage["alpha_bar"]
    if {**found, "T": 0} != {"_target_": COSINE, "T": 0, **COSINE_NUMBERS} or predicts(stage) != "sample":
        raise UserError(f"UnCLIPScheduler has the cosine schedule and predicts x_0; found {dict(stage)}")
    return {
        "_class_name": "UnCLIPScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": sampling["clamp"] is not None,
        "clip_sample_range": sampling["clamp"] or 1.0,
        "num_train_timesteps": found["T"],
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    }


def as_decoder_scheduler(stage: Config, sampling: Config) -> dict[str, Any]:
    """DDIMScheduler's, as Kandinsky 2.1's; where a variance is unused DDPMScheduler's, as Kandinsky 2.2's.

    ValueError for a schedule that is not linear.
    """
    found = stage["alpha_bar"]
    if found["_target_"] != LINEAR:
        raise UserError(f"the decoder's schedule is {found['_target_']}; diffusers' Kandinsky has a linear one")
    unused = stage["parameterisation"]["_target_"].endswith(".UnusedRange")
    own = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"} if unused else OF_DDIM
    return {
        **own,
        "beta_end": found["beta_max"],
        "beta_schedule": "linear",
        "beta_start": found["beta_min"],
        "clip_sample": sampling["clamp"] is not None,
        "clip_sample_range": sampling["clamp"] or 1.0,
        "num_train_timesteps": found["T"],
        "prediction_type": predicts(stage),
        "steps_offset": 1,
        "thresholding": False,
    }


def predicts(stage: Config) -> str:
    """Their word for what the network's output, or its first half, means."""
    found = stage["parameterisation"]
    name = found.get("mean", found)["_target_"].rpartition(".")[2]
    return {ours: theirs for theirs, ours in PREDICTIONS.items()}[name]
