"""diffusers' and transformers' form of our networks: keys, configs, folders."""

from open_kandinsky.weights.diffusers.keys import from_diffusers, movq, prior, to_diffusers, unet

__all__ = ["from_diffusers", "movq", "prior", "to_diffusers", "unet"]
