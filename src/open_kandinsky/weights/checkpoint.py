"""A checkpoint of a training of ours, a file or a folder: the network as it was after a step, and its average."""

from collections import Counter
from pathlib import Path

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import checkpoint_folder, store
from open_kandinsky.weights.part import Picked

NETWORK = "network."  # the stage's; an adversary lies beside it


def raw(path: Path) -> Picked:
    """The weights as they were last."""
    state = checkpoint_folder.read(path, "state_dict") if path.is_dir() else store.read_any(path)
    network = {key.removeprefix(NETWORK): x for key, x in state.items() if key.startswith(NETWORK)}
    return Picked(network, dict(Counter(key.partition(".")[0] for key in state if not key.startswith(NETWORK))))


def ema(path: Path) -> Picked:
    """The averaged weights. ValueError where the run kept no average."""
    state, dropped = raw(path)
    average = averages(path)
    if not average:
        raise UserError(f"{path}: weights_of=ema, but its run kept no average (callbacks.ema): take weights_of=raw")
    if stray := sorted(average.keys() - state.keys()):
        raise UserError(f"{path}: {len(stray)} averaged weights are of no weight, {stray[0]!r} among them")
    return Picked(state | average, dropped)


def usual(path: Path) -> Picked:
    """As its run would leave it: averaged where an average was kept."""
    return ema(path) if averages(path) else raw(path)


def averages(path: Path) -> dict:
    file = path / checkpoint_folder.META if path.is_dir() else path
    return store.unpickled(file).get("callbacks", {}).get("EMA", {}).get("average", {})
