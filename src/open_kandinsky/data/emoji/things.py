"""Emoji by their code points: the thing that one shows, who of people it is, and the split that it falls into.

A thing is what is left of an emoji without skin tone, gender and variation selectors: a firefighter and a woman
firefighter of medium skin are one thing, and fall into one split, unless a split is about such combinations.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

JOINER, VARIATION = 0x200D, 0xFE0F
TONES = {
    0x1F3FB: "light",
    0x1F3FC: "medium-light",
    0x1F3FD: "medium",
    0x1F3FE: "medium-dark",
    0x1F3FF: "dark",
}
SIGNS = {0x2640: "woman", 0x2642: "man"}
# one who is told by a code point of their own -> the code point of a person of no told gender
GENDERED = {
    0x1F468: (0x1F9D1, "man"),
    0x1F469: (0x1F9D1, "woman"),
    0x1F466: (0x1F9D2, "boy"),
    0x1F467: (0x1F9D2, "girl"),
    0x1F474: (0x1F9D3, "man"),
    0x1F475: (0x1F9D3, "woman"),
}
SEEN, STYLE, COMBINATION, LANGUAGE = "seen", "unseen_style", "unseen_combination", "unseen_language"
SPLITS = (SEEN, STYLE, COMBINATION, LANGUAGE)


class Emoji(NamedTuple):
    """An emoji: its text, its thing, and for one person the gender and skin tone that it tells (None: none)."""

    text: str
    thing: str
    gender: str | None
    tone: str | None

    @property
    def code(self) -> str:
        """Its code points in hexadecimal, as in 1f469-1f3fd-200d-1f692."""
        return code_of(self.text)

    @property
    def combination(self) -> tuple[str, str, str] | None:
        """Profession, gender and tone; None where one of the last two is not told."""
        return (self.thing, self.gender, self.tone) if self.gender and self.tone else None


def code_of(text: str) -> str:
    """The code points of a text in hexadecimal, joined by hyphens."""
    return "-".join(f"{ord(character):x}" for character in text)


def read(text: str) -> Emoji:
    """Take an emoji apart. Two people, who may differ, tell neither gender nor tone."""
    points = [ord(character) for character in text]
    genders = [GENDERED[point][1] for point in points if point in GENDERED]
    genders += [
        SIGNS[point] for before, point in zip(points, points[1:], strict=False) if before == JOINER and point in SIGNS
    ]
    tones = [TONES[point] for point in points if point in TONES]
    return Emoji(
        text=text,
        thing=code_of("".join(map(chr, thing_of(points)))),
        gender=genders[0] if len(genders) == 1 else None,
        tone=tones[0] if len(tones) == 1 else None,
    )


def thing_of(points: Sequence[int]) -> list[int]:
    """Code points without skin tone, gender and variation selectors; a joiner that joins nothing any more goes too."""
    kept = [GENDERED.get(point, (point,))[0] for point in points if point not in TONES and point != VARIATION]
    joined = "".join(map(chr, kept)).split(chr(JOINER))
    parts = [part for number, part in enumerate(joined) if number == 0 or not (len(part) == 1 and ord(part) in SIGNS)]
    return [ord(character) for character in chr(JOINER).join(parts)]


class Splits(NamedTuple):
    """What is held out of training. A style's picture of a thing, a combination in all styles, a name in a language."""

    styles: Mapping[str, str]  # thing -> the style in which it is never shown
    combinations: frozenset[tuple[str, str, str]]
    languages: Mapping[str, str]  # thing -> the language in which its names are never read

    def of_picture(self, emoji: Emoji, style: str) -> str:
        """The split of one picture."""
        if emoji.combination in self.combinations:
            return COMBINATION
        return STYLE if self.styles.get(emoji.thing) == style else SEEN


def hold_out(
    emojis: Iterable[Emoji],
    *,
    styles: Sequence[str],
    languages: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
) -> Splits:
    """Choose what is held out, by a hash of the seed and the name, so that more emoji do not change the others' lot.

    `shares`: of the things (`unseen_style`, `unseen_language`) and of the combinations. A combination is held out only
    where its profession, its gender with another tone, and its tone with another gender stay in training.
    """
    emojis = list(emojis)
    people = {emoji.thing for emoji in emojis if emoji.combination}
    things = sorted({emoji.thing for emoji in emojis} - people)
    held = chosen(things, shares[STYLE], f"{seed}/style")
    told = chosen(sorted({emoji.thing for emoji in emojis}), shares[LANGUAGE], f"{seed}/language")
    combinations = sorted({emoji.combination for emoji in emojis if emoji.combination})
    return Splits(
        styles={thing: styles[number(f"{seed}/which style/{thing}") % len(styles)] for thing in held},
        combinations=frozenset(apart(chosen(combinations, shares[COMBINATION], f"{seed}/combination"), combinations)),
        languages={thing: languages[number(f"{seed}/which language/{thing}") % len(languages)] for thing in told},
    )


def chosen(names: Sequence, share: float, seed: str) -> list:
    """The names whose hash is below the share of all hashes."""
    return [name for name in names if number(f"{seed}/{name}") < share * 2**64]


def number(text: str) -> int:
    """A whole number below 2^64 that the text decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def apart(held: Sequence[tuple[str, str, str]], every: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Of the held-out combinations those that leave their parts to training, each taken back if they do not."""
    kept = set(every) - set(held)
    good = []
    for one in held:
        same = [other for other in kept if other[0] == one[0]]
        if any(other[1] == one[1] for other in same) and any(other[2] == one[2] for other in same):
            good.append(one)
        else:
            kept.add(one)
    return good
