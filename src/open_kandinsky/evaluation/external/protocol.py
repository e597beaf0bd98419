"""Benchmarks that other programs score: pictures drawn into their folders, and their results read back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.evaluation.external import geneval, t2i_compbench
from open_kandinsky.evaluation.external.pictures import NumberedPicture
from open_kandinsky.evaluation.report import METRICS, commit, versions, write_json
from open_kandinsky.evaluation.samples import DRAWING, EvalRequest, Samples, png


@dataclass(frozen=True)
class Benchmark:
    """`read` gives a list's items, `prompt` an item's text; `write` makes the folder, `results` reads a program's."""

    read: Callable[[Path], Sequence[Any]]
    prompt: Callable[[Any], str]
    write: Callable[[Path, Sequence[Any], Iterator[NumberedPicture]], None]
    results: Callable[[Path], Mapping[str, Any]]
    each: int


BENCHMARKS = {
    "geneval": Benchmark(
        geneval.read_metadata, lambda line: line["prompt"], geneval.write, geneval.results, geneval.EACH
    ),
    "t2i_compbench": Benchmark(
        t2i_compbench.read_prompts, str, t2i_compbench.write, t2i_compbench.results, t2i_compbench.EACH
    ),
}


@dataclass(frozen=True, kw_only=True)
class LayoutProtocol:
    """Given `prompts` it draws; given `results`, where their program has run, it writes metrics.json."""

    reads = ("block", "seed", *DRAWING)
    metrics = ()

    name: str  # one of BENCHMARKS
    prompts: str | None
    results: str | None

    def run(self, asked: EvalRequest) -> str:
        """What was done, and what to do next."""
        if (self.prompts is None) == (self.results is None):
            told = "give protocol.prompts=FILE to draw, or protocol.results=PATH to read what its program found"
            raise UserError(f"protocol={self.name}: {told}")
        return self.draw(asked, Path(self.prompts)) if self.prompts else self.read(asked, Path(str(self.results)))

    def draw(self, asked: EvalRequest, prompts: Path) -> str:
        """ValueError for a list that is not the benchmark's."""
        benchmark = BENCHMARKS[self.name]
        items = benchmark.read(prompts)
        texts = [benchmark.prompt(item) for item in items for _ in range(benchmark.each)]
        folder, size = asked.out / self.name, min(asked.block, len(texts))
        samples = Samples(asked.out / "pictures", texts, asked.system, seeds="independent", size=size)
        samples.draw(len(texts), Leases(asked.out / "claims" / "pictures"))
        laid = Laid(folder, lambda: benchmark.write(folder, items, drawn(samples, benchmark.each)))
        share([laid], Leases(asked.out / "claims" / "layout"), seen=lambda: None)
        return f"drawn: {folder}\nscore it by {self.name}'s own program, then: protocol.results=PATH"

    def read(self, asked: EvalRequest, results: Path) -> str:
        """ValueError where there are metrics already."""
        path = asked.out / METRICS
        if path.exists():
            raise UserError(f"out={asked.out} holds metrics already, and none are overwritten: choose another folder")
        found = BENCHMARKS[self.name].results(results)
        weights = dict(asked.system.weights_sha256)
        made = {"weights_sha256": weights, "versions": versions(), "made": {"commit": commit()}}
        write_json(path, {"protocol": self.name, "metrics": found, **made})
        return f"read: {path}"


@dataclass(frozen=True)
class Laid:
    """The folder as one unit of work: complete or not there."""

    folder: Path
    do: Callable[[], None]
    name: str = "layout"

    def done(self) -> bool:
        return self.folder.is_dir()


def drawn(samples: Samples, each: int) -> Iterator[NumberedPicture]:
    for number, image in samples.each(len(samples.prompts)):
        yield NumberedPicture(number // each, samples.prompts[number], number % each, png(image))
