"""A folder of pictures that nobody but the tests drew, in the form that `open-kandinsky emoji source=` reads."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from open_kandinsky.data.emoji.captions import LANGUAGES

TONES = "🏻🏼🏽🏾🏿"
THINGS = [chr(point) for point in range(0x1F400, 0x1F440)]  # animals
PEOPLE = [f"{who}{tone}\u200d{job}" for who in "👩👨🧑" for tone in TONES for job in "🚒🎨🚀"]
EMOJI = [*THINGS, *PEOPLE, "👩\u200d🚒", "🇫🇷"]


def write_source(folder: Path) -> Path:
    """twemoji/*.png, openmoji/*.svg and names/emoji*.json of EMOJI, each in a colour and shape of its own."""
    for name in ("twemoji", "openmoji", "names"):
        (folder / name).mkdir(parents=True)
    for number, text in enumerate(EMOJI):
        code = "-".join(f"{ord(character):x}" for character in text)
        colour = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
        image = Image.new("RGBA", (72, 72))
        ImageDraw.Draw(image).ellipse((8, 8, 64, 64), fill=(*colour, 255))
        image.save(folder / "twemoji" / f"{code}.png")
        box = f'<rect x="12" y="12" width="48" height="48" fill="rgb{colour}"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{box}</svg>'
        (folder / "openmoji" / f"{code.upper()}.svg").write_text(svg)
    english = {text: {"en": f":thing_{number}:", "status": 2} for number, text in enumerate(EMOJI)}
    english["🤖"] = {"en": ":robot:", "status": 2}  # of which there is no picture
    english["☎"] = {"en": ":telephone:", "status": 4}  # another spelling of an emoji
    (folder / "names" / "emoji.json").write_text(json.dumps(english))
    for language in LANGUAGES:
        if language != "en":
            names = {text: f":{language}_{number}:" for number, text in enumerate(EMOJI)}
            (folder / "names" / f"emoji_{language}.json").write_text(json.dumps(names))
    return folder
