"""What else lies in a checkpoint of MoVQGAN's training: averaged copies of the autoencoder, and its critics."""

from collections import Counter

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.keymap import State
from open_kandinsky.weights.part import Picked

MODULES = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")  # each with an average of its own
AVERAGES = tuple(f"ema_{module}." for module in MODULES)
CRITICS = "loss."  # the discriminator and LPIPS
COUNTS = ("decay", "num_updates")  # an average's own two numbers


def raw(checkpoint: State) -> Picked:
    """The weights as they were last; neither critics nor averages."""
    named = {key: _left(key) for key in checkpoint}
    state = {key: checkpoint[key] for key, left in named.items() if left is None}
    return Picked(state, dict(Counter(left for left in named.values() if left is not None)))


def ema(checkpoint: State) -> Picked:
    """The averaged weights, by the names of the others: an average's names are those without their dots.

    ValueError where there is no average, or not one of each weight.
    """
    if not any(key.startswith(AVERAGES) for key in checkpoint):
        raise UserError("weights_of=ema, but these hold no ema_encoder, ema_decoder, ...: take weights_of=raw")
    last, dropped = raw(checkpoint)
    averages = {key: average_of(key) for key in last}
    if missing := [name for name in averages.values() if name not in checkpoint]:
        raise UserError(f"{len(missing)} averaged weights are missing, {missing[0]!r} among them; take weights_of=raw")
    spare = set(dropped) & set(AVERAGES)
    counts = {f"{name}{count}" for name in spare for count in COUNTS}
    if left := [k for k in checkpoint if k.startswith(AVERAGES) and k not in counts and k not in averages.values()]:
        raise UserError(f"{len(left)} averaged weights are of no weight, {left[0]!r} among them")
    told = {name: count for name, count in dropped.items() if name not in spare} | {"not averaged": len(last)}
    return Picked({key: checkpoint[name] for key, name in averages.items()}, told)


def average_of(key: str) -> str:
    """`encoder.conv_in.weight` is averaged in `ema_encoder.conv_inweight`."""
    module, _, name = key.partition(".")
    return f"ema_{module}.{name.replace('.', '')}"


def _left(key: str) -> str | None:
    """The name under which a key is dropped; None for one of the autoencoder's."""
    return next((prefix for prefix in (CRITICS, *AVERAGES) if key.startswith(prefix)), None)
