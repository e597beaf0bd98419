"""Set before anything is begun: float32 as a CPU has it, and products that are the same each time."""

import os

import pytest

os.environ |= {"NVIDIA_TF32_OVERRIDE": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.fixture(autouse=True)
def there():
    import torch

    assert torch.cuda.is_available(), "make test-gpu needs a GPU"
