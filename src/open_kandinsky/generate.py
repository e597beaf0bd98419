"""Pictures from a trained system.

open-kandinsky generate prompts='["a red circle"]' weights=runs/quickstart out=out/circles
open-kandinsky generate mode=variations images='[cat.png]' count=4 weights=runs/quickstart out=out/cats
open-kandinsky generate mode=mix parts='[cat.png, "a red circle"]' part_weights='[0.6, 0.4]' weights=... out=out/mix
open-kandinsky generate mode=interpolate between='[cat.png, "a red circle"]' count=9 weights=... out=out/between
open-kandinsky generate mode=image_to_image prompts='[a lion]' images='[cat.png]' strength=0.5 weights=... out=out/lion
open-kandinsky generate mode=inpaint prompts='[a hat]' images='[cat.png]' masks='[mask.png]' weights=... out=out/hat
open-kandinsky generate mode=outpaint prompts='[grass]' images='[cat.png]' margins='[64, 64, 0, 0]' weights=... out=wide

request.json, in the folder, has all that decides the pictures. A folder that was begun with the same request is
completed. manifest.jsonl is written last: with it, the folder is complete.
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
from open_kandinsky.pipeline.sampling import STRENGTH
from open_kandinsky.weights import store

FILES = ("images", "masks", "parts", "between")  # keys whose values may be paths of pictures


def generate(cfg: DictConfig) -> Path:
    """Draw the pictures that the folder lacks; returns the folder."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    mode = checked_mode(values)
    check(values)
    requests = mode.requests(values)
    if not requests:
        raise UserError(f"nothing to draw: mode={values['mode']} needs {mode.needs}")
    check_steps(values["weights"], values)
    request = full_request(values, mode, requests, fingerprints(values["weights"]))
    pictures = [Picture(i, one.prompt, one.seed) for i, one in enumerate(requests)]
    gallery = Gallery(Path(values["out"]), request, pictures)
    batches, done = gallery.batches(values["batch_size"]), len(pictures) - len(gallery.missing())
    if batches:
        execution_options = {key: values[key] for key in ("device", "offload", "compile")}
        pipe = load(values["weights"], dtype=store.DTYPES[values["dtype"]], **execution_options)
        pipe.progress = False  # there is a bar of pictures
        with tqdm(total=len(pictures), initial=done, desc="pictures", unit="picture") as bar:
            for batch in batches:
                draw(pipe, values, mode, batch, [requests[picture.index] for picture in batch], gallery)
                bar.update(len(pictures) - len(gallery.missing()) - bar.n)
    gallery.finish()
    return gallery.folder


def draw(
    pipe: Pipeline,
    values: Mapping[str, Any],
    mode: Mode,
    batch: Sequence[Picture],
    requests: Sequence[PictureRequest],
    gallery: Gallery,
) -> None:
    """Draw a batch of pictures into the gallery, each with the parameters that it was made by."""
    chosen = {name: value for name, value in options_of(values, mode).items() if value is not None}
    images = mode.draw(pipe, values, requests, chosen | {"seeds": [one.seed for one in requests]})
    shared = {"dtype": values["dtype"]} | parameters(values, mode, pipe)
    for picture, one, image in zip(batch, requests, images, strict=True):
        gallery.add([picture], [image], shared | one.made_from | {"size": image.size})


def checked_mode(values: Mapping[str, Any]) -> Mode:
    """ValueError for an unknown mode, and for a value that the mode does not read."""
    name = str(values["mode"])
    mode = lookup("mode", name, MODES)
    others = {key for other in MODES.values() for key in other.reads} - set(mode.reads)
    if idle := sorted(key for key in others if values[key] not in (None, "", [])):
        raise UserError(f"mode={name} does not read {', '.join(idle)}; it reads {', '.join(mode.reads)}")
    return mode


def check(values: Mapping[str, Any]) -> None:
    """ValueError for a value that can be refused before any file is read."""
    for name in ("count", "batch_size"):
        options.at_least_one(name, values[name])
    if not options.is_whole(values["seed"]):
        raise UserError(f"seed={values['seed']}: a whole number")
    options.check({name: values[name] for name in options.CHECKS if name in values})
    lookup("dtype", values["dtype"], store.DTYPES)
    device = values["device"]
    for one in device.values() if isinstance(device, Mapping) else [device]:
        execution.check_device(one)
    if values["compile"]:
        execution.check_compile(device, offload=values["offload"])


def full_request(
    values: Mapping[str, Any], mode: Mode, requests: Sequence[PictureRequest], weights: Mapping[str, str]
) -> dict[str, Any]:
    """All that decides the pictures and, on a CPU, their last bits, except torch's version and the kind of machine."""
    files = [path for name in FILES for path in strings(values[name]) if is_picture(path)]
    return {
        "mode": values["mode"],
        "dtype": values["dtype"],
        "batch_size": values["batch_size"],
        "threads": set_threads(Path(values["out"]), values["device"]),
        **options_of(values, mode),
        "pictures": [[one.prompt, one.seed, *([one.made_from] if one.made_from else [])] for one in requests],
        "images_sha256": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files},
        "weights_sha256": weights,
    }


def set_threads(out: Path, device: Any) -> int | None:
    """Use as many CPU threads as the folder was begun with; returns their number. None where a GPU draws."""
    if device != "cpu":
        return None
    torch.set_num_threads(begun_with(out).get("threads") or torch.get_num_threads())
    return torch.get_num_threads()


def parameters(values: Mapping[str, Any], mode: Mode, pipe: Pipeline) -> dict[str, Any]:
    """The options with which the pictures are drawn; what the config leaves open is as the weights say."""
    prior, decoder = pipe.prior.sampling, pipe.decoder.sampling
    defaults = {
        "prior_steps": prior.steps,
        "prior_scale": prior.scale,
        "prior_sampler": prior.sampler,
        "strength": STRENGTH,
        "steps": decoder.steps,
        "scale": decoder.scale,
        "sampler": decoder.sampler,
    }
    chosen = {name: value for name, value in values.items() if value is not None}
    return {name: chosen.get(name, default) for name, default in defaults.items() if name in mode.reads}


def options_of(values: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """The mode's options; None for those that the weights decide."""
    return {name: options.sides(values[name]) if name == "size" else values[name] for name in mode.options}


@compose.command("generate")
def main(cfg: DictConfig) -> None:
    print(f"generated: {generate(cfg)}")


if __name__ == "__main__":
    main()
