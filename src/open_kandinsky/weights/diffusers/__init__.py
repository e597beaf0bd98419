"""The forms that diffusers and transformers give our networks: keys, configs, folders, exports."""

from open_kandinsky.weights.diffusers.keys import from_diffusers, movq, prior, to_diffusers, unet

__all__ = ["from_diffusers", "movq", "prior", "to_diffusers", "unet"]
