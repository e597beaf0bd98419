"""Captions of emoji in many languages: the Unicode name, the style, and the colour behind it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core.errors import UserError

ENGLISH = "en"
WHITE = "white"
COLOURS = {
    "white": (255, 255, 255),
    "grey": (176, 180, 186),
    "red": (226, 106, 96),
    "orange": (246, 176, 92),
    "yellow": (250, 226, 122),
    "green": (138, 196, 130),
    "blue": (128, 170, 232),
    "purple": (178, 144, 214),
}
NAMES = tuple(COLOURS)


class Language(NamedTuple):
    """How a caption is said. `form` has places for the name, the style and the background's phrase."""

    form: str
    backgrounds: tuple[str, ...]  # in the order of COLOURS


LANGUAGES = {
    "en": Language(
        "{name} in the style of {style} on {background}",
        tuple(f"a {name} background" for name in NAMES[:3])
        + ("an orange background",)
        + tuple(f"a {name} background" for name in NAMES[4:]),
    ),
    "de": Language(
        "{name} im Stil von {style} auf {background} Hintergrund",
        ("weißem", "grauem", "rotem", "orangem", "gelbem", "grünem", "blauem", "violettem"),
    ),
    "es": Language(
        "{name} al estilo de {style} sobre fondo {background}",
        ("blanco", "gris", "rojo", "naranja", "amarillo", "verde", "azul", "morado"),
    ),
    "fr": Language(
        "{name} dans le style de {style} sur fond {background}",
        ("blanc", "gris", "rouge", "orange", "jaune", "vert", "bleu", "violet"),
    ),
    "it": Language(
        "{name} nello stile di {style} su sfondo {background}",
        ("bianco", "grigio", "rosso", "arancione", "giallo", "verde", "blu", "viola"),
    ),
    "pt": Language(
        "{name} no estilo de {style} em fundo {background}",
        ("branco", "cinza", "vermelho", "laranja", "amarelo", "verde", "azul", "roxo"),
    ),
    "ru": Language(
        "{name} в стиле {style} на {background} фоне",
        ("белом", "сером", "красном", "оранжевом", "жёлтом", "зелёном", "синем", "фиолетовом"),
    ),
    "tr": Language(
        "{background} arka plan üzerinde {style} tarzında {name}",
        ("beyaz", "gri", "kırmızı", "turuncu", "sarı", "yeşil", "mavi", "mor"),
    ),
    "id": Language(
        "{name} dengan gaya {style} di atas latar {background}",
        ("putih", "abu-abu", "merah", "jingga", "kuning", "hijau", "biru", "ungu"),
    ),
    "zh": Language(
        "{background}背景上{style}风格的{name}", ("白色", "灰色", "红色", "橙色", "黄色", "绿色", "蓝色", "紫色")
    ),
    "ja": Language(
        "{background}背景の{style}風の{name}",
        ("白い", "灰色の", "赤い", "オレンジ色の", "黄色い", "緑の", "青い", "紫の"),
    ),
    "ko": Language(
        "{background} 배경의 {style} 스타일 {name}",
        ("하얀", "회색", "빨간", "주황색", "노란", "초록색", "파란", "보라색"),
    ),
    "ar": Language(
        "{name} بأسلوب {style} على خلفية {background}",
        ("بيضاء", "رمادية", "حمراء", "برتقالية", "صفراء", "خضراء", "زرقاء", "بنفسجية"),
    ),
    "fa": Language(
        "{name} به سبک {style} روی پس‌زمینه {background}",
        ("سفید", "خاکستری", "قرمز", "نارنجی", "زرد", "سبز", "آبی", "بنفش"),
    ),
}
FLAG = "flag of "  # the English names of flags are those of countries alone
FULLY_QUALIFIED = 2  # what Unicode recommends to write, of several spellings of one emoji
LARGEST = 16 << 20  # bytes of a file of names


def caption(name: str, *, style: str, background: str, language: str) -> str:
    """The caption of one picture, as in "fox in the style of OpenMoji on a blue background"."""
    form, backgrounds = LANGUAGES[language]
    return form.format(name=name, style=style, background=backgrounds[NAMES.index(background)])


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """The names of each emoji by language, from the files emoji.json and emoji_XX.json of the package `emoji`.

    Emoji as Unicode recommends to write them, in the files' order. ValueError for a file that is not there or not in
    that form.
    """
    english = read_json(folder / "emoji.json")
    texts = [text for text, about in english.items() if about.get("status") == FULLY_QUALIFIED]
    others = {language: read_json(folder / f"emoji_{language}.json") for language in LANGUAGES if language != ENGLISH}
    named = {text: {ENGLISH: FLAG * is_flag(text) + plain(english[text][ENGLISH])} for text in texts}
    for text in texts:
        named[text] |= {language: plain(names[text]) for language, names in others.items() if text in names}
    return named


def read_json(path: Path) -> Mapping:
    """An object of a JSON file of at most 16 MiB."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; a file of names has at most {LARGEST:,}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no file of emoji names ({error}); they are those of the package emoji 2.16.0"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a {type(found).__name__}; names are an object, by emoji")
    return found


def is_flag(text: str) -> bool:
    """Whether an emoji is a country's flag: two of Unicode's regional letters."""
    return len(text) == 2 and all(0x1F1E6 <= ord(letter) <= 0x1F1FF for letter in text)


def plain(name: str) -> str:
    """A name as one writes it: ":red_apple:" is "red apple"."""
    return " ".join(name.strip(":").replace("_", " ").split())
