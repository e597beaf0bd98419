"""How long evaluating takes on two cores: against torch-fidelity and scipy, and all statistics at 30,000 pictures.

    python benchmarks/claims/evaluation.py

Features and weights are random: they cost what real ones do. Ratios are of medians in one process, taking turns; what
a statistic takes at 30,000 is measured in a process of its own, whose peak memory includes Python and torch (0.4 GB).
A machine that others use too makes all of it slower: cpu_s, over two, is then nearer to what the cores need.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch_fidelity import feature_extractor_inceptionv3

sys.path.insert(0, str(Path(__file__).parents[1]))

from timing import Effort, Entry, alone, compared, main  # noqa: E402

from open_kandinsky.metrics import evaluators  # noqa: E402
from open_kandinsky.metrics.features import inception_score
from open_kandinsky.metrics.frechet import cross_checked, frechet_from_moments, moments
from open_kandinsky.metrics.kernel import cmmd, kid
from open_kandinsky.metrics.neighbours import neighbours

N, POOL, CLASSES, CLIP = 30_000, 2048, 1008, 768
BATCH = 16
GOAL_SECONDS, GOAL_BYTES = 180.0, 4e9


def drawn(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated features, with a spectrum that falls as Inception's does."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(d, d, generator=generator) * torch.arange(1, d + 1) ** -0.55
    return torch.randn(n, d, generator=generator) @ axes.T / d**0.5 + 0.5


STATISTICS: dict[str, tuple[int, Callable[[torch.Tensor, torch.Tensor], object]]] = {
    "Frechet distance, cross-checked": (POOL, cross_checked),
    "KID, 100 subsets of 1,000": (POOL, lambda x, y: kid(x, y, seed=0)),
    "Inception score": (CLASSES, lambda x, _: inception_score(x, seed=0)),
    "precision, recall, density, coverage": (POOL, neighbours),
    "CMMD": (CLIP, cmmd),
}


def theirs(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """torch-fidelity's extractor with these weights, which it would fetch."""
    feature_extractor_inceptionv3.load_state_dict_from_url = lambda *_, **__: state
    names = ["2048", "logits_unbiased"]
    return feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception-v3-compat", names)


def features(effort: Effort) -> Entry:
    """A batch of 256 px pictures through both extractors."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, 256, 256), dtype=torch.uint8)
    network = evaluators.Inception(state=None, input_path=evaluators.tf1)
    ours, other = evaluators.folded(network), theirs(network.state_dict())
    return compared("Inception features, 256 px", lambda: ours(pixels), lambda: other(pixels), 1.5, effort)


def distance(effort: Effort) -> Entry:
    """The Frechet distance from moments, 2048 wide."""
    from scipy import linalg

    x, y = moments(drawn(4 * POOL, POOL, 0)), moments(drawn(4 * POOL, POOL, 1))

    def by_matrix_root() -> float:
        root = linalg.sqrtm(x.cov.numpy() @ y.cov.numpy())
        return float((x.mean - y.mean).square().sum() + x.cov.trace() + y.cov.trace()) - 2 * root.trace().real

    ours = lambda: frechet_from_moments(*x, *y)  # noqa: E731
    return compared("Frechet distance, d=2048, against scipy's sqrtm", ours, by_matrix_root, 4.0, effort)


def measured(name: str) -> None:
    """One statistic in this process, as a line of JSON."""
    width, statistic = STATISTICS[name]
    x, y = drawn(N, width, 0), drawn(N, width, 1)
    before = time.process_time()
    start = time.perf_counter()
    statistic(x, y)
    took = time.perf_counter() - start
    cpu = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"ours_s": took, "cpu_s": cpu, "peak_bytes": peak}))


def in_a_process(name: str) -> Entry:
    """One statistic in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "--statistic", name], check=True, capture_output=True, text=True)
    width = STATISTICS[name][0]
    return alone(f"{name}, {N:,} x {width}", **json.loads(said.stdout), goal_peak_bytes=GOAL_BYTES)


def total(entries: list[Entry]) -> Entry:
    sums = {key: sum(entry[key] for entry in entries) for key in ("ours_s", "cpu_s")}
    return alone(f"all statistics of {N:,} pictures together", **sums, goal=GOAL_SECONDS)


def claims(effort: Effort) -> Iterator[Entry]:
    with torch.inference_mode():
        yield features(effort)
        if effort.quick:
            return
        yield distance(effort._replace(repeats=3))
    parts = []
    for name in STATISTICS:
        parts.append(in_a_process(name))
        yield parts[-1]
    yield total(parts)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--statistic"]:
        torch.set_num_threads(2)
        measured(sys.argv[2])
    else:
        main(claims, __doc__)
