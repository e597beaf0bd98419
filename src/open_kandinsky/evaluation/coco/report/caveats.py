"""What a reader of the numbers must know, most of it a reason not to compare them."""

from collections import Counter
from typing import Any

from open_kandinsky.evaluation.coco.run import Run
from open_kandinsky.evaluation.scoring.scores import SMALL

LENIENT = 0.001  # the share of captions that may be cut before a CLIP score is to be doubted


def caveats(run: Run) -> list[str]:
    """A sentence each."""
    return [*of_list(run), *of_pictures(run), *of_real_pictures(run), *of_captions(run), *of_evaluators(run)]


def of_list(run: Run) -> list[str]:
    found = []
    if not run.coco.is_val2014:
        found.append(f"{run.coco.source.name} is not val2014: it has {len(run.coco.images):,} images. Not COCO-30K.")
    if run.n < len(run.captions):
        found.append(f"The first {run.n:,} of {len(run.captions):,} captions: distances depend on how many there are.")
    if run.n < SMALL:
        found.append(f"{run.n:,} pictures are fewer than Inception's 2,048 features: no FID for comparison.")
    return found


def of_pictures(run: Run) -> list[str]:
    markers = run.samples.markers(run.n)
    found = []
    if len({seed for marker in markers for seed in marker["seeds"]}) == 1 and run.n > 1:
        found.append("All pictures were drawn from one noise, as this protocol has it: they are not independent.")
    if rows := run.samples.flat(run.n):
        found.append(f"{len(rows):,} pictures have a single colour: {', '.join(map(str, rows[:8]))}.")
    if len({str(marker["drawn_with"]) for marker in markers}) > 1:
        found.append("Drawn with different settings: the config beside the weights was changed on the way.")
    if len(machines := {marker["machine"] for marker in markers}) > 1:
        found.append(f"Drawn on different machines, so not to be repeated bit by bit: {'; '.join(sorted(machines))}.")
    if len({marker["versions"]["torch"] for marker in markers}) > 1:
        found.append("Drawn with different versions of torch, so not to be repeated bit by bit.")
    return found


def of_real_pictures(run: Run) -> list[str]:
    found = []
    for protocol in run.protocols:
        shapes = [(run.coco.by_id[i].width, run.coco.by_id[i].height) for i in run.real(protocol).ids]
        if stretched := sum(protocol.real.distorts(*shape) for shape in shapes):
            found.append(f"{protocol.name} changes the shape of {stretched:,} of {len(shapes):,} real pictures.")
    modes: Counter[str] = Counter()
    for features in run.features(run.protocol):
        modes = modes or features.converted()
    if modes:
        told = ", ".join(f"{count:,} from {mode}" for mode, count in sorted(modes.items()))
        found.append(f"Real pictures were converted to RGB: {told}.")
    return found


def of_captions(run: Run) -> list[str]:
    texts = [caption.text for caption in run.captions[: run.n]]
    found = []
    for extractor in readers(run):
        if cut := extractor.cut(texts):
            doubt = "; doubt its score" if len(cut) > LENIENT * len(texts) else ""
            found.append(f"{extractor.name} cut {len(cut):,} of {len(texts):,} captions, {cut[0]!r} first{doubt}.")
    return found


def of_evaluators(run: Run) -> list[str]:
    weights = [getattr(features.extractor, "weights", None) for features in run.features(run.protocol)]
    paths = dict.fromkeys(found.path.name for found in weights if found is not None and not found.verified)
    return [f"{path} is not the published file, or its hash is not known: unverified." for path in paths]


def readers(run: Run) -> list[Any]:
    """The networks that read captions, each once."""
    extractors = [features.extractor for features in run.features(run.protocol)]
    return list({extractor.name: extractor for extractor in extractors if hasattr(extractor, "cut")}.values())
