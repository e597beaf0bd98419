"""Benchmarks that other programs score: draws pictures into their folders, and reads their results."""

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
    """How to read a benchmark's list of prompts, write its folder of pictures, and read its program's results."""

    read: Callable[[Path], Sequence[Any]]
    prompt: Callable[[Any], str]  # of an item that `read` gives
    write: Callable[[Path, Sequence[Any], Iterator[NumberedPicture]], None]
    results: Callable[[Path], Mapping[str, Any]]
    each: int  # pictures of a prompt


BENCHMARKS = {
    "geneval": Benchmark(
        geneval.read_metadata, lambda line: line["prompt"], geneval.write, geneval.results, geneval.EACH
    ),
    "t2i_compbench": Benchmark(
        t2i_compbench.read_prompts, str, t2i_compbench.write, t2i_compbench.results, t2i_compbench.EACH
    ),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkProtocol:
    """Draws where `prompts` is given; writes metrics.json where `results` of the benchmark's program are."""

    reads = ("block", "seed", *DRAWING)
    metrics = ()

    name: str  # one of BENCHMARKS
    prompts: str | None
    results: str | None

    def run(self, request: EvalRequest) -> str:
        """Returns what was done, and what to do next. ValueError unless one of prompts and results is given."""
        if (self.prompts is None) == (self.results is None):
            remedy = "give protocol.prompts=FILE to draw, or protocol.results=PATH to read what its program found"
            raise UserError(f"protocol={self.name}: {remedy}")
        return self.draw(request, Path(self.prompts)) if self.prompts else self.read(request, Path(str(self.results)))

    def draw(self, request: EvalRequest, prompts: Path) -> str:
        """Draw the pictures and write the folder. ValueError for a list that is not the benchmark's."""
        benchmark = BENCHMARKS[self.name]
        items = benchmark.read(prompts)
        texts = [benchmark.prompt(item) for item in items for _ in range(benchmark.each)]
        folder, size = request.out / self.name, min(request.block, len(texts))
        samples = Samples(request.out / "pictures", texts, request.system, seeds="independent", size=size)
        samples.draw(len(texts), Leases(request.out / "claims" / "pictures"))

        def write() -> None:
            pictures = (
                NumberedPicture(number // benchmark.each, texts[number], number % benchmark.each, png(image))
                for number, image in samples.each(len(texts))
            )
            benchmark.write(folder, items, pictures)

        share([BenchmarkFolder(folder, write)], Leases(request.out / "claims" / "layout"), seen=lambda: None)
        return f"drawn: {folder}\nscore it by {self.name}'s own program, then: protocol.results=PATH"

    def read(self, request: EvalRequest, results: Path) -> str:
        """Write metrics.json. ValueError where it exists."""
        path = request.out / METRICS
        if path.exists():
            raise UserError(f"out={request.out} holds metrics already, and none are overwritten: choose another folder")
        report = {
            "protocol": self.name,
            "metrics": BENCHMARKS[self.name].results(results),
            "weights_sha256": dict(request.system.weights_sha256),
            "versions": versions(),
            "made": {"commit": commit()},
        }
        write_json(path, report)
        return f"read: {path}"


@dataclass(frozen=True)
class BenchmarkFolder:
    """The writing of the folder, as work that processes share: the folder is complete or not there."""

    folder: Path
    do: Callable[[], None]
    name: str = "layout"

    def done(self) -> bool:
        return self.folder.is_dir()
