"""diffusers' scheduler_config.json as our schedule, parameterisation and sampling, and back."""

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
DEFAULTS = "sampling.json"  # a file of ours in their folder: scheduler_config.json has no steps and no scale
# The numbers of their cosine schedule, which are not in its config.
COSINE_NUMBERS = {"s": 0.008, "beta_max": 0.999}


def diffusion(cfg: Config, where: str, *, with_variance: bool) -> dict[str, Any]:
    """`stage` and `sampling` of a part. ValueError for a scheduler without a counterpart here."""
    name = cfg.get("_class_name")
    if name not in SAMPLERS:
        raise UserError(f"{where}: {name} is not known; known are {', '.join(SAMPLERS)}")
    if cfg.get("rescale_betas_zero_snr"):
        raise UserError(f"{where}: rescale_betas_zero_snr is true; no schedule of ours is made so")
    p = parameterisation(cfg, where)
    if with_variance:
        p = {"_target_": f"{DIFFUSION}.parameterisation.{variance(cfg, where)}", "mean": p}
    # |x_0| is clamped at 1 by default, in each class that can clamp.
    clips = cfg.get("clip_sample", name in ("UnCLIPScheduler", "DDPMScheduler", "DDIMScheduler"))
    clamp = float(cfg.get("clip_sample_range", 1.0)) if clips else None
    stage = {"alpha_bar": alpha_bar(cfg, where), "parameterisation": p}
    return {"stage": stage, "sampling": {"sampler": SAMPLERS[name], "clamp": clamp}}


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
    """Our class for a network that predicts a variance. Schedulers without noise do not say whether they use it."""
    if cfg["_class_name"] not in ("DDPMScheduler", "UnCLIPScheduler"):
        return "LearnedRange"
    name = cfg.get("variance_type", "fixed_small")
    if name not in VARIANCES:
        raise UserError(f"{where}: variance_type is {name!r}; known are {', '.join(VARIANCES)}")
    return VARIANCES[name]


def as_prior_scheduler(stage: Config, sampling: Config) -> dict[str, Any]:
    """UnCLIPScheduler's config. ValueError for anything but a cosine schedule and x_0, which the pipeline assumes."""
    schedule = stage["alpha_bar"]
    if {**schedule, "T": 0} != {"_target_": COSINE, "T": 0, **COSINE_NUMBERS} or predicts(stage) != "sample":
        raise UserError(f"UnCLIPScheduler has the cosine schedule and predicts x_0; found {dict(stage)}")
    return {
        "_class_name": "UnCLIPScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "clip_sample": sampling["clamp"] is not None,
        "clip_sample_range": sampling["clamp"] or 1.0,
        "num_train_timesteps": schedule["T"],
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    }


def as_decoder_scheduler(stage: Config, sampling: Config) -> dict[str, Any]:
    """DDIMScheduler's config, as Kandinsky 2.1's; for an unused variance DDPMScheduler's, as Kandinsky 2.2's.

    ValueError for a schedule that is not linear.
    """
    schedule = stage["alpha_bar"]
    if schedule["_target_"] != LINEAR:
        raise UserError(f"the decoder's schedule is {schedule['_target_']}; diffusers' Kandinsky has a linear one")
    unused = stage["parameterisation"]["_target_"].endswith(".UnusedRange")
    ddpm = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small"}
    ddim = {"_class_name": "DDIMScheduler", "set_alpha_to_one": False}
    return {
        **(ddpm if unused else ddim),
        "beta_end": schedule["beta_max"],
        "beta_schedule": "linear",
        "beta_start": schedule["beta_min"],
        "clip_sample": sampling["clamp"] is not None,
        "clip_sample_range": sampling["clamp"] or 1.0,
        "num_train_timesteps": schedule["T"],
        "prediction_type": predicts(stage),
        "steps_offset": 1,
        "thresholding": False,
    }


def predicts(stage: Config) -> str:
    """diffusers' `prediction_type` of our parameterisation."""
    p = stage["parameterisation"]
    name = p.get("mean", p)["_target_"].rpartition(".")[2]
    return {ours: theirs for theirs, ours in PREDICTIONS.items()}[name]
