"""Pictures to edit, how alike two are, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from open_kandinsky.core.failures import message


def photo(size=(32, 32), seed=0):
    """Noise: no two pixels agree, so that no shift or scaling goes unseen."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def right_third(size):
    """A mask of the right third."""
    mask = Image.new("L", size)
    mask.paste(255, (size[0] * 2 // 3, 0, size[0], size[1]))
    return mask


def array(image):
    return np.asarray(image).astype(int)


def same(one, other):
    """To one level of 256, by rounding."""
    return one.size == other.size and abs(array(one) - array(other)).max() <= 1


def refused(told, call, *args, **kwargs):
    """As a person's mistake, in one message."""
    with pytest.raises(ValueError, match=told) as refusal:
        call(*args, **kwargs)
    assert message(refusal.value)
