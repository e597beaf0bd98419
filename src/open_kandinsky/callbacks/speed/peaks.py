"""What a GPU could do: dense matrix products, from the vendor's data sheets and architecture white papers.

Lightning has such a table (fabric.utilities.throughput), but some of its entries are those for sparse matrices, which
are twice as high, and it does not know an H200 by the name that its driver gives.
"""

import re
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """In TFLOP/s, without sparsity, sums in float32."""

    bf16: float  # float16 is as fast
    tf32: float


PEAKS = {  # a pattern of the name that torch.cuda.get_device_name gives
    r"A100\b": Peak(312.0, 156.0),
    r"H100 80GB HBM3$": Peak(989.4, 494.7),
    r"H100 PCIe$": Peak(756.0, 378.0),
    r"H100 NVL$": Peak(835.5, 417.5),
    r"H200$": Peak(989.4, 494.7),
    r"H200 NVL$": Peak(835.5, 417.5),
    r"L4$": Peak(121.0, 60.0),
    r"L40S$": Peak(362.0, 183.0),
    r"A10$": Peak(125.0, 62.5),
    r"A40$": Peak(149.7, 74.8),
    r"RTX A6000$": Peak(154.8, 77.4),
    r"RTX 3090$": Peak(71.0, 35.6),
    r"RTX 4090$": Peak(165.2, 82.6),
}


def peak(device: str, precision: str) -> float | None:
    """TFLOP/s of the GPU of that name in Lightning's `precision`; None where it is not known: no number is guessed.

    A part of a GPU (MIG) is not known. Float32 is tf32 if matrix products are allowed to be; if not, convolutions
    still are, and no one number is the peak.
    """
    found = [
        figures for name, figures in PEAKS.items() if re.search(rf"(^|\s|-){name}", device) and "MIG" not in device
    ]
    column = arithmetic(precision)
    return getattr(found[0], column) if found and column else None


def arithmetic(precision: str) -> str | None:
    if precision in ("bf16-mixed", "bf16-true", "16-mixed", "16-true"):
        return "bf16"
    return "tf32" if precision == "32-true" and torch.get_float32_matmul_precision() != "highest" else None
