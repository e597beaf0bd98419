"""The toy set's world: scenes of one or two coloured shapes, their captions and pictures, and splits for training.

Everything is drawn from known attributes, so a rule-based reader can say whether a picture shows what its caption says.
Silhouettes are functions in units of the shape's radius, sampled into soft masks that are painted one over the other.
Positions are (x, y) in pixels, x to the right, y down, the middle of the first pixel at (0.5, 0.5).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from jaxtyping import Float, Float32, UInt8

from open_kandinsky.core.errors import UserError

SAMPLES = 4  # along each side of a pixel: 16 samples make the edge

Axis = Float[np.ndarray, "#h #w"]
Silhouette = Callable[[Axis, Axis], np.ndarray]


def circle(x: Axis, y: Axis) -> np.ndarray:
    """The unit disc."""
    return x * x + y * y <= 1


def square(x: Axis, y: Axis) -> np.ndarray:
    """Slightly less than the unit box, so that its area is nearer to the others'."""
    return (abs(x) <= 0.92) & (abs(y) <= 0.92)


def triangle(x: Axis, y: Axis) -> np.ndarray:
    """Apex up, as wide and nearly as high as the unit box."""
    return (y <= 0.9) & (abs(x) <= (y + 1) / 1.9)


def cross(x: Axis, y: Axis) -> np.ndarray:
    """Upright, with arms thick enough to survive an autoencoder that halves the picture twice."""
    return ((abs(x) <= 0.36) & (abs(y) <= 1)) | ((abs(y) <= 0.36) & (abs(x) <= 1))


SILHOUETTES: Mapping[str, Silhouette] = {"circle": circle, "square": square, "triangle": triangle, "cross": cross}


def coverage(shape: str, *, centre: tuple[float, float], radius: float, size: int) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel the shape covers, in [0, 1]; `radius`, `centre` and `size` in pixels."""
    at = (np.arange(size * SAMPLES) + 0.5) / SAMPLES
    x, y = (at - centre[0]) / radius, (at - centre[1]) / radius
    inside = SILHOUETTES[shape](x[None, :], y[:, None])
    pool = np.repeat(np.eye(size, dtype=np.float32), SAMPLES, axis=1) / SAMPLES
    return pool @ inside.astype(np.float32) @ pool.T


SPLITS = ("seen", "unseen", "never")

RGB = tuple[int, int, int]


@dataclass(frozen=True, order=True)
class Thing:
    """One object; `size` is a word for an object alone and empty for one of a pair."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One thing, or two of which the first stands in `relation` to the second (empty for one), on a background."""

    things: tuple[Thing, ...]
    relation: str
    background: str

    def to_json(self) -> dict:
        """Plain lists, dicts and strings; `from_json` is its inverse."""
        return {**vars(self), "things": [dict(vars(thing)) for thing in self.things]}

    @classmethod
    def from_json(cls, fields: Mapping) -> "Scene":
        return cls(tuple(Thing(**thing) for thing in fields["things"]), fields["relation"], fields["background"])


@dataclass(frozen=True, kw_only=True)
class World:
    """The vocabularies and the geometry. Lengths but `size` are fractions of half the picture's width.

    size: pixels a side. relations: name -> direction (x, y) from the second thing to the first.
    sizes: radius of a thing alone. jitter: the furthest a centre moves from its place, along each axis.
    never: shape -> the colour it never has in training. unseen: share of the other scenes that is held out.
    """

    size: int
    shapes: tuple[str, ...]
    colours: Mapping[str, RGB]
    backgrounds: Mapping[str, RGB]
    relations: Mapping[str, tuple[int, int]]
    sizes: Mapping[str, float]
    jitter: float
    pair_radius: float
    pair_offset: float
    pair_jitter: float
    never: Mapping[str, str]
    unseen: float

    def caption(self, scene: Scene) -> str:
        """A few English words for all attributes: "a red circle left of a blue square on a black background"."""
        names = [" ".join(filter(None, ("a", thing.size, thing.colour, thing.shape))) for thing in scene.things]
        return f"{f' {scene.relation} '.join(names)} on a {scene.background} background"

    def radius(self, size: str) -> float:
        """In pixels; the empty size is that of a pair's things."""
        return self.size / 2 * (self.sizes[size] if size else self.pair_radius)

    def centres(self, scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
        """Where each thing lies, (x, y) in pixels, jittered."""
        direction = np.array(self.relations.get(scene.relation, (0, 0)))
        places = np.outer((1, -1), direction * self.pair_offset)[: len(scene.things)]
        jitter = self.pair_jitter if scene.relation else self.jitter
        centres = self.size / 2 * (1 + places + rng.uniform(-jitter, jitter, places.shape))
        return [(float(x), float(y)) for x, y in centres]

    def render(self, scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """Draw the scene; only the positions are random."""
        canvas = np.full((self.size, self.size, 3), self.backgrounds[scene.background], dtype=np.float32)
        for thing, centre in zip(scene.things, self.centres(scene, rng), strict=True):
            mask = coverage(thing.shape, centre=centre, radius=self.radius(thing.size), size=self.size)
            canvas = canvas + mask[:, :, None] * (np.array(self.colours[thing.colour], dtype=np.float32) - canvas)
        return np.rint(canvas).astype(np.uint8)

    def template(self, shape: str, radius: float, offset: tuple[float, float]) -> Float32[np.ndarray, "h w"]:
        """The soft mask of a shape `offset` pixels (x, y) from the middle of the picture; `radius` in pixels."""
        x, y = offset
        return coverage(shape, centre=(self.size / 2 + x, self.size / 2 + y), radius=radius, size=self.size)

    def swap(self, scene: Scene) -> Scene:
        """The twin of a pair: its things have changed places, so the same words say something else."""
        assert scene.relation, scene
        return Scene(scene.things[::-1], scene.relation, scene.background)

    def split(self, scene: Scene) -> str:
        """Which split it belongs to.

        never: it shows a (shape, colour) kept out of training. unseen: all its parts are seen, but never so together.
        """
        if any(self.never[thing.shape] == thing.colour for thing in scene.things):
            return "never"
        return "unseen" if fraction(self.meaning(scene)) < self.unseen else "seen"

    def meaning(self, scene: Scene) -> Scene:
        """The one scene that stands for both readings of a pair: "A left of B" is "B right of A"."""
        if not scene.relation or scene.things == tuple(sorted(scene.things)):
            return scene
        x, y = self.relations[scene.relation]
        inverse = next(name for name, direction in self.relations.items() if tuple(direction) == (-x, -y))
        return Scene(scene.things[::-1], inverse, scene.background)

    def singles(self) -> list[Scene]:
        """Every scene of one thing."""
        things = [Thing(*attributes) for attributes in product(self.shapes, self.colours, self.sizes)]
        return [Scene((thing,), "", background) for thing, background in product(things, self.backgrounds)]

    def pairs(self) -> list[Scene]:
        """Every scene of two things that differ in shape, colour or both."""
        things = [Thing(shape, colour, "") for shape, colour in product(self.shapes, self.colours)]
        attributes = product(permutations(things, 2), self.relations, self.backgrounds)
        return [Scene(pair, relation, background) for pair, relation, background in attributes]


def toy_world(*, size: int) -> World:
    """The world of the toy set: colours and backgrounds at least 128 apart in RGB, things of a pair never touching."""
    return World(
        size=size,
        shapes=tuple(SILHOUETTES),
        colours={
            "red": (230, 30, 30),
            "green": (20, 185, 40),
            "blue": (30, 60, 230),
            "yellow": (250, 230, 40),
            "cyan": (40, 210, 230),
        },
        backgrounds={"white": (250, 250, 250), "gray": (128, 128, 128), "black": (5, 5, 5), "purple": (128, 0, 128)},
        relations={"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)},
        sizes={"small": 0.48, "large": 0.78},
        jitter=0.1,
        pair_radius=0.44,
        pair_offset=0.53,
        pair_jitter=0.02,
        never={"circle": "green", "square": "yellow", "triangle": "red", "cross": "blue"},
        unseen=0.15,
    )


def fraction(scene: Scene) -> float:
    """A number in [0, 1) that depends on the scene alone, the same on every machine."""
    digest = hashlib.sha256(json.dumps(scene.to_json(), sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def deck(cards: Sequence[Scene], rng: np.random.Generator) -> Iterator[Scene]:
    """Endless: each scene once in random order, then again in another order."""
    while True:
        yield from (cards[i] for i in rng.permutation(len(cards)))


def decks(world: World, split: str, rng: np.random.Generator) -> tuple[Iterator[Scene], Iterator[Scene]]:
    """The singles and the pairs of a split, each endless. Raises ValueError for a split that does not exist."""
    if split not in SPLITS:
        raise UserError(f"no split is called {split!r}; choose one of {', '.join(SPLITS)}")
    singles, pairs = ([s for s in all_ if world.split(s) == split] for all_ in (world.singles(), world.pairs()))
    return deck(singles, rng), deck(pairs, rng)


def scenes(world: World, split: str, rng: np.random.Generator) -> Iterator[Scene]:
    """Endless scenes of a split, a single and a pair in turn; none comes again before all of its kind have come."""
    for single, pair in zip(*decks(world, split, rng), strict=True):
        yield single
        yield pair
