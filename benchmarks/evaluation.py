"""How long evaluating takes on two cores: against torch-fidelity and scipy, and all statistics at 30,000 pictures.

    python benchmarks/evaluation.py [--json results.json]

Features and weights are random: they cost what real ones do. Ratios are of medians in one process, taking turns; what
a statistic takes at 30,000 is measured in a process of its own, whose peak memory includes Python and torch (0.4 GB).
A machine that others use too makes all of it slower: cpu_s, over two, is then nearer to what the cores need.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch_fidelity import feature_extractor_inceptionv3

from open_kandinsky import atomic
from open_kandinsky.metrics.evaluators import inception
from open_kandinsky.metrics.frechet import frechet_from_moments, moments
from open_kandinsky.metrics.frechet_check import cross_checked
from open_kandinsky.metrics.inception_score import inception_score
from open_kandinsky.metrics.kernel import cmmd, kid
from open_kandinsky.metrics.neighbours import neighbours

N, POOL, CLASSES, CLIP = 30_000, 2048, 1008, 768
BATCH = 16
ROOT = Path(__file__).parents[1]
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


def features(repeats: int) -> dict:
    """A batch of 256 px pictures through both extractors."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, 256, 256), dtype=torch.uint8)
    network = inception.Inception(state=None, input_path=inception.tf1)
    ours, other = inception.folded(network), theirs(network.state_dict())
    return compared("Inception features, 256 px", lambda: ours(pixels), lambda: other(pixels), 1.5, repeats)


def distance(repeats: int) -> dict:
    """The Frechet distance from moments, 2048 wide."""
    from scipy import linalg

    x, y = moments(drawn(4 * POOL, POOL, 0)), moments(drawn(4 * POOL, POOL, 1))

    def by_matrix_root() -> float:
        root = linalg.sqrtm(x.cov.numpy() @ y.cov.numpy())
        return float((x.mean - y.mean).square().sum() + x.cov.trace() + y.cov.trace()) - 2 * root.trace().real

    ours = lambda: frechet_from_moments(*x, *y)  # noqa: E731
    return compared("Frechet distance, d=2048, against scipy's sqrtm", ours, by_matrix_root, 4.0, repeats)


def compared(claim: str, ours: Callable, other: Callable, goal: float, repeats: int) -> dict:
    """Both after one run that does not count, then in turns; `spread` is of the turns' ratios, over their median."""
    with torch.inference_mode():
        pairs = [(seconds(ours), seconds(other)) for _ in range(repeats + 1)][1:]
    ours_s, theirs_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    spread = (max(ratios) - min(ratios)) / statistics.median(ratios)
    entry = {"claim": claim, "ours_s": ours_s, "theirs_s": theirs_s, "ratio": theirs_s / ours_s, "goal": goal}
    return entry | {"spread": spread}


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured(name: str) -> None:
    """One statistic in this process, as a line of JSON."""
    width, statistic = STATISTICS[name]
    x, y = drawn(N, width, 0), drawn(N, width, 1)
    before = time.process_time()
    took = seconds(lambda: statistic(x, y))
    cpu = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"ours_s": took, "cpu_s": cpu, "peak_bytes": peak}))


def alone(name: str) -> dict:
    """One statistic in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "--statistic", name], check=True, capture_output=True, text=True)
    width = STATISTICS[name][0]
    entry = {"claim": f"{name}, {N:,} x {width}", "theirs_s": None, "ratio": None, "goal": None, "spread": None}
    return entry | json.loads(said.stdout) | {"goal_peak_bytes": GOAL_BYTES}


def total(entries: list[dict]) -> dict:
    sums = {key: sum(entry[key] for entry in entries) for key in ("ours_s", "cpu_s")}
    entry = {"claim": f"all statistics of {N:,} pictures together", "theirs_s": None, "ratio": None, "spread": None}
    return entry | sums | {"goal": GOAL_SECONDS}


def where() -> dict[str, str]:
    """This machine and this commit."""
    cpu = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {
        "machine": f"{cpu[0] if cpu else platform.processor()}, {torch.get_num_threads()} threads",
        "commit": commit,
    }


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def row(entry: dict) -> str:
    ratio = f"{entry['ratio']:.2f}x" if entry["ratio"] else ""
    other = f"{entry['theirs_s']:.2f}" if entry["theirs_s"] else ""
    peak = f"{entry['peak_bytes'] / 1e9:.2f} GB" if "peak_bytes" in entry else ""
    goal = f"{entry['goal']:g}" if entry["goal"] else ""
    cpu = f"{entry['cpu_s']:.0f}" if "cpu_s" in entry else ""
    return f"{entry['claim']:55} {entry['ours_s']:9.2f} {other:>9} {ratio:>7} {goal:>6} {cpu:>6} {peak:>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--statistic", choices=STATISTICS, help="measure this one alone, in this process")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.statistic:
        measured(args.statistic)
        return
    print(
        f"{'claim':55} {'ours, s':>9} {'theirs, s':>9} {'ratio':>7} {'goal':>6} {'cpu, s':>6} {'peak':>9}", flush=True
    )
    entries = []
    for entry in every(args.repeats):
        entries.append(entry | where())
        print(row(entry), flush=True)
    if args.json:
        atomic.write(args.json, json.dumps(entries, indent=2) + "\n")


def every(repeats: int):
    """The entries, as they are measured."""
    yield features(repeats)
    yield distance(min(repeats, 3))
    parts = []
    for name in STATISTICS:
        parts.append(alone(name))
        yield parts[-1]
    yield total(parts)


if __name__ == "__main__":
    main()
