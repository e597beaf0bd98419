"""The assembled system and its modes. No Lightning, no configuration: networks, schedules and samplers."""

from open_kandinsky.pipeline.options import Options
from open_kandinsky.pipeline.pipeline import Pipeline
from open_kandinsky.pipeline.sampling import Diffusion, FromImage, FromNoise, InpaintCondition, Sampling, Step

__all__ = ["Diffusion", "FromImage", "FromNoise", "InpaintCondition", "Options", "Pipeline", "Sampling", "Step"]
