"""The toy system's default sampler against its decoder's ddpm of 100 steps: as good, in how much less time.

    OPEN_KANDINSKY_TOY=runs/quickstart python benchmarks/claims/fast_sampler.py

Same weights, captions and prior; end to end, from captions to pixels. That both are as good is shown: `accuracy` is the
share of pictures that the rule-based reader finds as their captions say, with its standard error, `frechet` the
distance to real pictures in the toy CLIP's features (not FID). Without weights, which `make quickstart` trains, nothing
is measured.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from timing import Effort, Entry, alone, compared, main  # noqa: E402

from open_kandinsky import loading  # noqa: E402
from open_kandinsky.data.shapes.world import toy_world  # noqa: E402
from open_kandinsky.evaluation.toy import Examples, Judge, read_examples  # noqa: E402
from open_kandinsky.metrics.frechet import frechet_distance  # noqa: E402

GOAL, BATCH = 4.0, 64
SLOW: dict[str, Any] = {"sampler": "ddpm", "steps": 100}
WEIGHTS = Path(os.environ.get("OPEN_KANDINSKY_TOY", "runs/quickstart"))


def quality(judge: Judge, examples: Examples, **options: Any) -> tuple[dict[str, float], float]:
    """Accuracy with its standard error; Frechet distance."""
    drawn = judge.draw(examples.captions, "", **options)
    distance = frechet_distance(judge.image_emb(drawn.pixels), judge.image_emb(examples.pixels))
    return judge.accuracy(drawn.pixels, examples.scenes), distance


def claims(effort: Effort) -> Iterator[Entry]:
    told = "toy text to image, default sampler, against ddpm of 100 steps"
    if not (WEIGHTS / "decoder").is_dir():
        yield alone(told, goal=GOAL, skipped=f"no weights in {WEIGHTS}: make quickstart, or OPEN_KANDINSKY_TOY=FOLDER")
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress bars
        judge = Judge(loading.load(WEIGHTS), toy_world(size=32), batch_size=BATCH)
        examples = read_examples(str(WEIGHTS / "shapes" / "seen"), 32 if effort.quick else 512)
        (fast, fast_frechet), (slow, slow_frechet) = quality(judge, examples), quality(judge, examples, **SLOW)
        few, captions = effort._replace(repeats=min(effort.repeats, 3)), examples.captions[:BATCH]
        ours, theirs = (lambda: judge.draw(captions, "")), (lambda: judge.draw(captions, "", **SLOW))
        entry = compared(told, ours, theirs, GOAL, few)
    figures = {"accuracy": fast["all"], "accuracy_ddpm": slow["all"], "accuracy_se": slow["all_se"]}
    yield entry | figures | {"frechet": fast_frechet, "frechet_ddpm": slow_frechet}


if __name__ == "__main__":
    main(claims, __doc__)
