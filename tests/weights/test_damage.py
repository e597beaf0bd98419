"""Weights and checkpoints that a disk or a stranger changed: refused in a message, or the same numbers as before."""

import json
import os
import shutil
import struct

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from open_kandinsky import loading
from open_kandinsky.core.failures import message
from open_kandinsky.weights import checkpoint, store

BOUNDED = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLACE, BIT = st.floats(0, 1, exclude_max=True), st.integers(0, 7)
STATE = {
    "a.weight": torch.linspace(-1, 1, 60).reshape(3, 4, 5),
    "b": torch.arange(7),
    "c": torch.linspace(0, 1, 24, dtype=torch.bfloat16).reshape(1, 2, 3, 4),
    "none": torch.zeros(0, 3),
}


def flip(path, place, bit):
    """One bit, `place` of the way into a file."""
    written = bytearray(path.read_bytes())
    written[int(place * len(written))] ^= 1 << bit
    path.write_bytes(written)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name], value) and one[name].dtype == value.dtype for name, value in other.items()
    )


def read_or_refused(read):
    """What is read; None where it is refused in one message."""
    try:
        return read()
    except ValueError as error:
        assert message(error), "not told in one message"
        return None


class Code:
    def __init__(self, touched):
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


# ---- weights.safetensors


def test_every_flipped_bit_of_weights_is_noticed(tmp_path):
    path, refusals = tmp_path / "weights.safetensors", []

    @BOUNDED
    @given(PLACE, BIT)
    def changed(place, bit):
        store.write(path, STATE)
        flip(path, place, bit)
        found = read_or_refused(lambda: store.read(path))
        assert found is None or same(found, STATE), (place, bit)
        refusals.append(found is None)

    changed()
    assert len(refusals) == 100 and sum(refusals) >= 95, "what is read has a flipped bit in its own name at most"


def test_every_number_is_covered(tmp_path):
    path = tmp_path / "weights.safetensors"
    store.write(path, STATE)
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    whole = path.read_bytes()
    assert same(store.read(path), STATE)
    for at in range(8 + header, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="damaged, its checksum is .* export it again"):
            store.read(path)


def test_weights_of_others_have_no_checksum_and_are_read(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors", {"format": "pt"})
    assert same(store.read(tmp_path / "weights.safetensors"), STATE)


def test_a_float_that_is_labelled_as_an_integer_is_no_weight(system, tmp_path):
    folder = shutil.copytree(system, tmp_path / "weights")
    path = folder / "prior" / "weights.safetensors"
    state = store.read(path)
    name = next(name for name, x in state.items() if x.ndim == 2 and x.dtype == torch.float32)
    save_file(state | {name: state[name].view(torch.int32)}, path)
    with pytest.raises(ValueError, match=rf"{name}' is of torch.int32, and torch.float32 is wanted"):
        loading.network(loading.part("prior", folder))


# ---- a file of torch's


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    path, refusals = tmp_path / "last.ckpt", []
    kept = {"state_dict": STATE, "global_step": 3}

    @BOUNDED
    @given(PLACE, BIT)
    def changed(place, bit):
        torch.save(kept, path)
        flip(path, place, bit)
        found = read_or_refused(lambda: store.unpickled(path))
        assert found is None or (same(found["state_dict"], STATE) and found["global_step"] == 3), (place, bit)
        refusals.append(found is None)

    changed()
    assert len(refusals) == 100 and sum(refusals) >= 30, "the rest of so small a file is padding and dates"


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
def test_a_checkpoint_that_ends_early(tmp_path, size):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": STATE}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="last.ckpt: (cut short|no whole checkpoint)"):
        store.unpickled(path)


def test_a_hole_is_told_before_anything_is_made_of_it(tmp_path):
    """A block that a file system never wrote, where numbers were."""
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.ones(100_000)}}, path)
    with open(path, "r+b") as file:
        file.seek(200_000)
        file.write(bytes(4096))
    assert store.damage(path) == "damaged, at last/data/0"
    with pytest.raises(ValueError, match="last.ckpt: damaged, at last/data/0; fetch it again"):
        store.unpickled(path)


# ---- a folder of sharded training


def sharded(path, **more):
    """As `Sharded` writes one, by one process."""
    shutil.rmtree(path, ignore_errors=True)
    values = {"state_dict": STATE, "optimizer_0": {"param_groups": [{"lr": 0.1, "params": ["b"]}]}}
    dcp.save(values | more, checkpoint_id=path, no_dist=True)
    torch.save({"global_step": 3}, path / checkpoint.META)
    names = [file.name for file in checkpoint.tensor_files(path)]
    (path / checkpoint.CHECKSUMS).write_text(json.dumps(checkpoint.checksums(path, names)))
    return path


def test_a_folder_is_read_as_it_was_written(tmp_path):
    found = checkpoint.joined(sharded(tmp_path / "a.ckpt"))
    assert same(found["state_dict"], STATE) and found["global_step"] == 3
    assert found["optimizer_states"] == [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}]


def test_every_flipped_bit_of_a_folder_is_noticed(tmp_path):
    path, refusals = tmp_path / "a.ckpt", []

    @BOUNDED
    @given(st.integers(0, 3), PLACE, BIT)
    def changed(which, place, bit):
        files = checkpoint.tensor_files(sharded(path))
        assert len(files) == 4
        flip(files[which], place, bit)
        found = read_or_refused(lambda: checkpoint.joined(path))
        assert found is None or same(found["state_dict"], STATE), (which, place, bit)
        refusals.append(found is None)

    changed()
    assert len(refusals) == 100 and sum(refusals) >= 95


def test_a_folder_that_lacks_a_file(tmp_path):
    for which in range(3):
        path = sharded(tmp_path / "a.ckpt")
        named = [file for file in checkpoint.tensor_files(path) if file.name != checkpoint.CHECKSUMS]
        named[which].unlink()
        with pytest.raises(ValueError, match="a.ckpt: (damaged|not a whole checkpoint).*take another"):
            checkpoint.joined(path)


@pytest.mark.parametrize("place", ["state_dict", "optimizer_0"])
def test_an_object_among_the_tensors_does_not_run(tmp_path, place):
    """With a checksum that is right, which a stranger can write, too."""
    touched = tmp_path / "touched"
    path = sharded(tmp_path / "a.ckpt", **{place: {"a.weight": torch.ones(3), "b": Code(touched)}})
    with pytest.raises(ValueError, match="it holds what is no plain value") as refusal:
        checkpoint.joined(path)
    assert message(refusal.value) and not touched.exists()


def change_index(path, change):
    import pickle

    about = checkpoint.index(path)
    change(about)
    (path / checkpoint.INDEX).write_bytes(pickle.dumps(about))
    (path / checkpoint.CHECKSUMS).unlink()


def larger(about):
    entry = about.state_dict_metadata["state_dict.a.weight"]
    entry.size = torch.Size([1 << 20, 1 << 20])


def elsewhere(about):
    for info in about.storage_data.values():
        info.relative_path = "../other/__0_0.distcp"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (larger, "its index has 4,398,046,511,.* bytes of tensors, and its files have"),
        (elsewhere, "an entry in .*, which is no plain file here"),
    ],
)
def test_an_index_that_asks_for_more_than_the_folder_has(tmp_path, change, told):
    path = sharded(tmp_path / "a.ckpt")
    change_index(path, change)
    with pytest.raises(ValueError, match=f"a.ckpt: refused: {told}"):
        checkpoint.joined(path)


def test_a_folder_of_before_checksums_is_read(tmp_path):
    path = sharded(tmp_path / "a.ckpt")
    (path / checkpoint.CHECKSUMS).unlink()
    assert same(checkpoint.joined(path)["state_dict"], STATE)
