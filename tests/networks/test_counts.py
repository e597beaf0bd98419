"""The networks of conf/, on the meta device, have exactly the official parameter counts."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONF = Path(__file__).parents[2] / "conf"
COUNTS = {
    ("dims=kandinsky21", "network/prior=diffusion"): 1_022_028_544,
    ("dims=kandinsky21", "network/unet=kandinsky21"): 1_228_661_768,
    ("dims=kandinsky21", "network/unet=kandinsky21_inpainting"): 1_228_679_048,
    ("dims=kandinsky22", "network/unet=kandinsky22"): 1_253_057_288,
    ("dims=kandinsky22", "network/unet=kandinsky22", "+stage.network.in_channels=9"): 1_253_074_568,
    ("dims=kandinsky21", "network/movq=movq_67m"): 67_832_495,
    ("dims=kandinsky21", "network/movq=movq_102m"): 101_614_255,
    ("dims=kandinsky21", "network/movq=movq_270m"): 270_669_103,
}


def full_size(*choices):
    with initialize_config_dir(str(CONF), version_base="1.3"), torch.device("meta"):
        cfg = compose(None, overrides=[f"+{choice}" for choice in choices])
        return instantiate(cfg.stage.network, _convert_="all")


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("choices", "expected"), COUNTS.items())
def test_parameter_count(choices, expected):
    assert count(full_size(*choices)) == expected


def test_prior_22_counts_its_statistics_in_the_official_file():
    """There the statistics are parameters; here they are buffers."""
    prior = full_size("dims=kandinsky22", "network/prior=diffusion")
    assert count(prior) + sum(buffer.numel() for buffer in prior.buffers()) == 1_026_225_920
