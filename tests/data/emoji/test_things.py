"""An emoji's code points say what it shows and who; what is held out leaves its parts to training."""

import pytest

from open_kandinsky.data.emoji import things
from open_kandinsky.data.emoji.things import COMBINATION, LANGUAGE, SEEN, STYLE, hold_out, read

STYLES, LANGUAGES = ("Twemoji", "OpenMoji"), ("de", "fr", "ja")
SHARES = {STYLE: 0.3, COMBINATION: 0.2, LANGUAGE: 0.3}
TONES = "🏻🏼🏽🏾🏿"
PEOPLE = [read(f"{who}{tone}\u200d{job}") for who in "👩👨" for tone in TONES for job in "🚒🎨🚀"]
ANIMALS = [read(chr(point)) for point in range(0x1F400, 0x1F440)]


@pytest.mark.parametrize(
    ("text", "thing", "gender", "tone"),
    [
        ("🦊", "1f98a", None, None),
        ("👩🏽\u200d🚒", "1f9d1-200d-1f692", "woman", "medium"),
        ("🧑\u200d🚒", "1f9d1-200d-1f692", None, None),
        ("🚶🏿\u200d♂️", "1f6b6", "man", "dark"),
        ("🚶", "1f6b6", None, None),
        ("👨🏻", "1f9d1", "man", "light"),
        ("👍🏾", "1f44d", None, "medium-dark"),
        ("❤️\u200d🔥", "2764-200d-1f525", None, None),
        ("👩🏻\u200d🤝\u200d👨🏿", "1f9d1-200d-1f91d-200d-1f9d1", None, None),  # two people tell neither
        ("🏳️\u200d⚧️", "1f3f3-200d-26a7", None, None),
        ("♂️", "2642", None, None),  # the sign alone is a thing
    ],
)
def test_an_emoji_is_taken_apart(text, thing, gender, tone):
    assert read(text) == things.Emoji(text, thing, gender, tone)


def test_what_is_held_out_leaves_its_parts_to_training():
    splits = hold_out(PEOPLE + ANIMALS, styles=STYLES, languages=LANGUAGES, shares=SHARES, seed=0)
    assert splits.styles and splits.combinations and splits.languages
    assert not set(splits.styles) & {emoji.thing for emoji in PEOPLE}
    trained = {emoji.combination for emoji in PEOPLE} - splits.combinations
    for thing, gender, tone in splits.combinations:
        assert {(thing, gender), (thing, tone)} <= {(t, g) for t, g, _ in trained} | {(t, s) for t, _, s in trained}


def test_all_variants_of_a_thing_fall_into_one_split():
    hands = [read(f"{hand}{tone}") for hand in "👍👎👏🙏💪👋" for tone in ("", *TONES)]
    splits = hold_out(hands, styles=STYLES, languages=LANGUAGES, shares=SHARES | {STYLE: 0.5}, seed=0)
    assert 0 < len(splits.styles) < 6
    for hand in hands:
        assert {
            splits.of_picture(other, style) for other in hands if other.thing == hand.thing for style in STYLES
        } == ({SEEN, STYLE} if hand.thing in splits.styles else {SEEN})


def test_the_lot_of_one_does_not_depend_on_the_others():
    every = hold_out(PEOPLE + ANIMALS, styles=STYLES, languages=LANGUAGES, shares=SHARES, seed=0)
    some = hold_out(ANIMALS[::2], styles=STYLES, languages=LANGUAGES, shares=SHARES, seed=0)
    kept = {emoji.thing for emoji in ANIMALS[::2]}
    assert some.styles == {thing: style for thing, style in every.styles.items() if thing in kept}
    assert some.languages == {thing: name for thing, name in every.languages.items() if thing in kept}
    assert every != hold_out(PEOPLE + ANIMALS, styles=STYLES, languages=LANGUAGES, shares=SHARES, seed=1)


def test_a_share_of_nothing_holds_nothing_out():
    nothing = dict.fromkeys(SHARES, 0.0)
    splits = hold_out(PEOPLE + ANIMALS, styles=STYLES, languages=LANGUAGES, shares=nothing, seed=0)
    assert not splits.styles and not splits.combinations and not splits.languages
