"""The assembled system and its modes. No Lightning, no configuration: networks, schedules and samplers."""

from open_kandinsky.pipeline.assembled import Pipeline
from open_kandinsky.pipeline.diffusion import Diffusion, Sampling
from open_kandinsky.pipeline.known import Known
from open_kandinsky.pipeline.options import Options
from open_kandinsky.pipeline.start import FromImage, FromNoise

__all__ = ["Diffusion", "FromImage", "FromNoise", "Known", "Options", "Pipeline", "Sampling"]
