"""Converts a system from any layout that `load` reads into ours or diffusers'.

open-kandinsky convert from=runs/quickstart to=out/diffusers layout=diffusers
open-kandinsky convert from='{prior: A, decoder: A, movq: movqgan_270M.ckpt}' to=out/native weights_of=ema
open-kandinsky convert from='{rest: runs/quickstart, decoder: RUN/checkpoints/last.ckpt}' to=out/last weights_of=raw
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from open_kandinsky.config import compose
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.loading import USUAL, Picks, find, network, with_sampling
from open_kandinsky.weights import checkpoint, store
from open_kandinsky.weights.diffusers import export
from open_kandinsky.weights.kandinsky21 import folder
from open_kandinsky.weights.keymap import State
from open_kandinsky.weights.part import TEXT, Part, Picked, agree, left_out

WEIGHTS_OF = {
    "usual": USUAL,
    "raw": Picks(folder.raw, checkpoint.raw),
    "ema": Picks(folder.ema, checkpoint.ema),
}
SUMS = "SHA256SUMS"  # as sha256sum -c reads it; written last


def convert(cfg: DictConfig) -> Path:
    """Write the system; returns the folder. ValueError for an unknown choice, and for a folder that is not empty."""
    write, pick = lookup("layout", cfg.layout, LAYOUTS), lookup("weights_of", cfg.weights_of, WEIGHTS_OF)
    dtype = lookup("dtype", cfg.dtype, store.DTYPES)
    out = Path(cfg.to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"to={out}: there is something already, and nothing is overwritten: choose another folder")
    source: Any = OmegaConf.to_container(cfg["from"]) if OmegaConf.is_config(cfg["from"]) else cfg["from"]
    parts = find(source, pick)
    agree(parts)
    refuse_idle(cfg.weights_of, parts)
    dropped: dict[str, dict[str, int]] = {}
    with files.new_folder(out) as folder, tqdm(total=len(parts), desc="parts", unit="part") as bar:
        write(folder, {name: recording(name, part, dropped) for name, part in parts.items()}, dtype, bar)
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = (f"{store.sha256(path)}  {path.relative_to(folder)}\n" for path in written)
        files.write(folder / SUMS, "".join(sums))
    for name, each in dropped.items():
        print(f"{name}: {left_out(each)}")
    return out


def recording(name: str, part: Part, dropped: dict[str, dict[str, int]]) -> Part:
    """The part, which records in `dropped` what it leaves out when it is read."""

    def read(like: State) -> Picked:
        picked = part.read(like)
        if picked.dropped:
            dropped[name] = picked.dropped
        return picked

    return replace(part, read=read)


def refuse_idle(weights_of: str, parts: Mapping[str, Part]) -> None:
    """ValueError for a choice of weights where no part has several sets: a run's folder holds one."""
    if weights_of != "usual" and not any(part.choice for part in parts.values()):
        text = f"weights_of={weights_of}: {parts['movq'].files[0]} holds one set of weights, and so do the other parts'"
        raise UserError(f"{text}; name a training's checkpoint, as {{rest: ..., decoder: RUN/checkpoints/last.ckpt}}")


def write_native(out: Path, parts: Mapping[str, Part], dtype: torch.dtype, bar: tqdm) -> None:
    """Write `config.yaml` and `weights.safetensors` of each part, and a text encoder's tokenizer."""
    for name, part in parts.items():
        cfg = OmegaConf.create(with_sampling(part, name))
        if name == TEXT:
            for file in export.tokenizer_files(Path(cfg.stage.network.tokenizer)):
                files.write(out / name / "tokenizer" / file.name, file.read_bytes())
            cfg.stage.network.tokenizer = "tokenizer"
        store.write(out / name / store.WEIGHTS, network(part, dtype).state_dict())
        compose.save(cfg, out / name / "config.yaml")
        bar.update()


def write_diffusers(out: Path, parts: Mapping[str, Part], dtype: torch.dtype, bar: tqdm) -> None:
    """Write diffusers' folders; see `weights.diffusers.export`."""

    def read(name: str) -> export.Weights:
        cfg = with_sampling(parts[name], name)
        state = {key: x.to(dtype) for key, x in network(parts[name], dtype).state_dict().items()}
        bar.update()
        return export.Weights(cfg, state)

    for name in ("prior", "decoder"):
        how = with_sampling(parts[name], name)["sampling"]
        print(f"{name}: drawn by default in {how['steps']} steps at scale {how['scale']}; diffusers has to be told so")
    text = parts.get(TEXT)
    tokenizer = None if text is None else Path(text.config["stage"]["network"]["tokenizer"])
    export.write(out, read, tokenizer)


LAYOUTS = {"native": write_native, "diffusers": write_diffusers}


@compose.command("convert")
def main(cfg: DictConfig) -> None:
    print(f"converted: {convert(cfg)}")


if __name__ == "__main__":
    main()
