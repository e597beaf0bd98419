"""Pictures from a trained system.

open-kandinsky generate prompts='["a red circle"]' weights=runs/quickstart out=out/circles
open-kandinsky generate mode=variations images='[cat.png]' count=4 weights=runs/quickstart out=out/cats
open-kandinsky generate mode=mix parts='[cat.png, "a red circle"]' part_weights='[0.6, 0.4]' weights=... out=out/mix
open-kandinsky generate mode=interpolate between='[cat.png, "a red circle"]' count=9 weights=... out=out/between
open-kandinsky generate mode=image_to_image prompts='[a lion]' images='[cat.png]' strength=0.5 weights=... out=out/lion
open-kandinsky generate mode=inpaint prompts='[a hat]' images='[cat.png]' masks='[mask.png]' weights=... out=out/hat
open-kandinsky generate mode=outpaint prompts='[grass]' images='[cat.png]' margins='[64, 64, 0, 0]' weights=... out=wide

A request is what was asked for: it decides every picture. A folder that was begun by the same request goes on where it
stopped; manifest.jsonl is written last, and says that all of it is there.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.generation.gallery import Gallery, Picture, begun_with
from open_kandinsky.generation.modes import MODES, Mode, PictureRequest, strings
from open_kandinsky.generation.prompts import is_picture
from open_kandinsky.loading import check_steps, fingerprints, load
from open_kandinsky.pipeline import Pipeline, execution, options
from open_kandinsky.pipeline.execution import check_device
from open_kandinsky.pipeline.sampling import STRENGTH
from open_kandinsky.weights import store

FILES = ("images", "masks", "parts", "between")  # which may name pictures


def generate(cfg: DictConfig) -> Path:
    """Draw what is not there yet; returns the folder."""
    wanted: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    mode = mode_of(wanted)
    check(wanted)
    asked = asked_of(wanted, mode)
    check_steps(wanted["weights"], wanted)
    weights = fingerprints(wanted["weights"])
    pictures = [Picture(i, one.prompt, one.seed) for i, one in enumerate(asked)]
    gallery = Gallery(Path(wanted["out"]), request(wanted, mode, asked, weights), pictures)
    batches, done = gallery.batches(wanted["batch_size"]), len(pictures) - len(gallery.missing())
    if batches:
        run = {key: wanted[key] for key in ("device", "offload", "compile")}
        pipe = load(wanted["weights"], dtype=store.DTYPES[wanted["dtype"]], **run)
        pipe.progress = False  # a bar of pictures is shown
        with tqdm(total=len(pictures), initial=done, desc="pictures", unit="picture") as bar:
            for batch in batches:
                draw(pipe, wanted, mode, batch, asked, gallery)
                bar.update(len(pictures) - len(gallery.missing()) - bar.n)
    gallery.finish()
    return gallery.folder


def draw(
    pipe: Pipeline,
    wanted: Mapping[str, Any],
    mode: Mode,
    batch: Sequence[Picture],
    asked: Sequence[PictureRequest],
    gallery: Gallery,
) -> None:
    """A batch of pictures into the gallery, each with what it was made by."""
    chosen_options = {name: value for name, value in given(wanted, mode).items() if value is not None}
    of_batch = [asked[picture.index] for picture in batch]
    images = mode.draw(pipe, wanted, of_batch, chosen_options)
    shared = {"dtype": wanted["dtype"]} | parameters(wanted, mode, pipe)
    for picture, one, image in zip(batch, of_batch, images, strict=True):
        gallery.add([picture], [image], shared | one.made_from | {"size": image.size})


def mode_of(wanted: Mapping[str, Any]) -> Mode:
    """ValueError for a mode that there is not, and for a value that the mode would not look at."""
    name = str(wanted["mode"])
    mode = lookup("mode", name, MODES)
    others = {name for other in MODES.values() for name in other.reads} - set(mode.reads)
    if idle := sorted(name for name in others if wanted[name] not in (None, "", [])):
        raise UserError(f"mode={name} does not read {', '.join(idle)}; it reads {', '.join(mode.reads)}")
    return mode


def asked_of(wanted: Mapping[str, Any], mode: Mode) -> list[PictureRequest]:
    """Every picture asked for."""
    asked = mode.asked(wanted)
    if not asked:
        raise UserError(f"nothing to draw: mode={wanted['mode']} needs {mode.needs}")
    return asked


def check(wanted: Mapping[str, Any]) -> None:
    """ValueError for what can be refused before anything is read."""
    for name in ("count", "batch_size"):
        options.at_least_one(name, wanted[name])
    if not options.is_whole(wanted["seed"]):
        raise UserError(f"seed={wanted['seed']}: a whole number")
    options.check({name: wanted[name] for name in options.CHECKS if name in wanted})
    lookup("dtype", wanted["dtype"], store.DTYPES)
    device = wanted["device"]
    for one in device.values() if isinstance(device, Mapping) else [device]:
        check_device(one)
    if wanted["compile"]:
        execution.check_compile(device, offload=wanted["offload"])


def request(
    wanted: Mapping[str, Any], mode: Mode, asked: Sequence[PictureRequest], weights: Mapping[str, str]
) -> dict[str, Any]:
    """All that decides the pictures, and on a CPU their last bits, but for torch's version and the machine's model."""
    files = [path for name in FILES for path in strings(wanted[name]) if is_picture(path)]
    return {
        "mode": wanted["mode"],
        "dtype": wanted["dtype"],
        "batch_size": wanted["batch_size"],
        "threads": threads(Path(wanted["out"]), wanted["device"]),
        **given(wanted, mode),
        "pictures": [[one.prompt, one.seed, *([one.made_from] if one.made_from else [])] for one in asked],
        "images_sha256": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files},
        "weights_sha256": weights,
    }


def threads(out: Path, device: Any) -> int | None:
    """How many threads a CPU draws with, from now on: as many as the folder was begun with. None where a GPU draws."""
    if device != "cpu":
        return None
    torch.set_num_threads(begun_with(out).get("threads") or torch.get_num_threads())
    return torch.get_num_threads()


def parameters(wanted: Mapping[str, Any], mode: Mode, pipe: Pipeline) -> dict[str, Any]:
    """How the pictures are drawn, where the weights decide that too."""
    prior, decoder = pipe.prior.sampling, pipe.decoder.sampling
    own: dict[str, Any] = {"prior_steps": prior.steps, "prior_scale": prior.scale, "prior_sampler": prior.sampler}
    own |= {"strength": STRENGTH, "steps": decoder.steps, "scale": decoder.scale, "sampler": decoder.sampler}
    return {name: own[name] if wanted[name] is None else wanted[name] for name in own if name in mode.reads}


def given(wanted: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """The mode's options; None for what is left to the weights."""
    return {name: options.sides(wanted[name]) if name == "size" else wanted[name] for name in mode.options}


@compose.command("generate")
def main(cfg: DictConfig) -> None:
    print(f"generated: {generate(cfg)}")


if __name__ == "__main__":
    main()
