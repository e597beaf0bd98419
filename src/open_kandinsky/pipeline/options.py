"""What a caller may say beside a mode's own inputs."""

from collections.abc import Sequence
from typing import Any, TypedDict

Number = int | float


class Options(TypedDict, total=False):
    """What is None or left out is as the networks were set up."""

    size: tuple[int, int] | None  # width and height in pixels; not where the size is an image's
    negative_prompt: str  # what the prior is guided away from
    negative_decoder_prompt: str  # what the decoder is guided away from, by its embedding; "": no picture at all
    prior_steps: int | None
    prior_scale: Number | None
    prior_sampler: str | None
    steps: int | None
    scale: Number | None
    sampler: str | None
    seeds: Sequence[int] | None  # one a picture, below 2^32; None: 0, 1, 2, ...


OF_PRIOR = {
    "negative_prompt": "negative_prompt",
    "prior_steps": "steps",
    "prior_scale": "scale",
    "prior_sampler": "sampler",
}
OF_MODE = {"negative_decoder_prompt", "seeds"}


def of_prior(options: Options) -> dict[str, Any]:
    """The prior's options by its own names for them."""
    return {own: options[name] for name, own in OF_PRIOR.items() if name in options}


def of_decoder(options: Options) -> dict[str, Any]:
    """All that is nobody else's, so that a name which does not exist is refused where it arrives."""
    return {name: value for name, value in options.items() if name not in OF_PRIOR.keys() | OF_MODE}
