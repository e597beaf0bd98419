"""A fact that two rooms share is written once, under `dims`, and every other place refers to it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
# Arguments that are such facts.
SHARED = {
    "T",
    "clip_size",
    "context",
    "decoder_text",
    "image_dim",
    "image_size",
    "latent_channels",
    "quantise_latents",
    "text_dim",
    "text_length",
    "text_width",
}


def leaves(value, path="", key=""):
    """Every (dotted path, last key, value) below `value`, lists included."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if below is None:
        yield path, key, value
    for name, child in below or ():
        yield from leaves(child, f"{path}.{name}", key if isinstance(value, list) else name)


@pytest.mark.parametrize(
    "file",
    sorted(p for p in CONF.rglob("*.yaml") if "dims" not in (p.stem, p.parent.name)),
    ids=lambda f: str(f.relative_to(CONF)),
)
def test_shared_facts_are_references(file):
    for path, key, value in leaves(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
        if key in SHARED and ".dims." not in f"{path}." and value is not None:
            assert str(value).startswith("${dims.") or str(value) == "???", f"{file}{path} repeats a number"
