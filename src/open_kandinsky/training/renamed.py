"""What the classes and keys of older runs' configs are called now, so that a resumed run is compared with what it was.

Weights need no table: the networks, schedules and parameterisations that weights/build.py lists keep their names.
"""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data.cache.CachedData": "data.cached_data.CachedData",
    "data.pairs.buckets.AspectBuckets": "data.pairs.AspectBuckets",
    "data.pairs.buckets.OneShape": "data.pairs.OneShape",
    "data.pairs.captions.Captions": "data.pairs.Captions",
    "data.pairs.filters.Filters": "data.pairs.Filters",
    "data.shards.ShardData": "data.shard_data.ShardData",
    "callbacks.checkpoint_io.WholeCheckpoints": "training.checkpointing.WholeCheckpoints",
    "callbacks.random_numbers.RandomNumbers": "callbacks.seeding.RandomNumbers",
    "callbacks.sharded.Sharded": "training.checkpointing.ShardedStrategy",
    "networks.batch_norm.SharedBatchNorm": "networks.discriminator.SharedBatchNorm",
    "stages.adversary_rate.in_step": "stages.gan.following_schedule",
    "stages.adversary_weight.Adaptive": "stages.gan.AdaptiveWeight",
    "stages.adversary_weight.Constant": "stages.gan.ConstantWeight",
    "stages.codes.Usage": "stages.movq.Usage",
    "stages.engine.Compiled": "stages.parallel.Compiled",
    "stages.engine.Engine": "stages.parallel.Engine",
    "stages.inpainting.Inpainting": "stages.conditioning.InpaintingInput",
    "stages.inpainting.Nothing": "stages.conditioning.NoInputConditioning",
    "stages.optimisation.warmup_constant": "stages.optim.warmup_constant",
    "stages.optimisation.warmup_cosine": "stages.optim.warmup_cosine",
    "stages.penalties.LeCam": "stages.gan.LeCam",
    "stages.penalties.R1": "stages.gan.R1",
    "stages.pixel_loss.PixelLoss": "stages.movq.PixelLoss",
    "stages.recomputing.Budget": "stages.parallel.MemoryBudget",
    "stages.recomputing.recompute": "stages.parallel.recompute",
}
PACKAGE = "open_kandinsky."
FOLLOWING = f"{PACKAGE}stages.gan.following_schedule"
WAYS = {  # an engine's ways by what they call
    f"{PACKAGE}stages.parallel.Compiled": "compile",
    f"{PACKAGE}stages.parallel.MemoryBudget": "budget",
    f"{PACKAGE}stages.parallel.recompute": "recompute",
}


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with its `_target_`s, and the keys of its stage and data, as they are called now."""
    found = with_targets(config)
    for name, update in (("stage", update_stage), ("data", update_data)):
        if isinstance(found.get(name), dict):
            update(found[name])
    return found


def with_targets(tree: Any) -> Any:
    """A tree of dicts and lists with each `_target_` as it is called now."""
    if isinstance(tree, Mapping):
        return {key: target(value) if key == "_target_" else with_targets(value) for key, value in tree.items()}
    return [with_targets(value) for value in tree] if isinstance(tree, list) else tree


def target(name: str) -> str:
    """Today's dotted name of a class or function; a name that was never changed is returned as it is."""
    return PACKAGE + RENAMED.get(name.removeprefix(PACKAGE), name.removeprefix(PACKAGE)) if PACKAGE in name else name


def update_stage(stage: dict[str, Any]) -> None:
    """Rename the keys of a stage in place: groups of two options that became values, and lists that became mappings."""
    if "beside" in stage:
        stage["input_conditioning"] = stage.pop("beside")
    if "revival" in stage:
        stage["restart_unused_codes"] = stage.pop("revival")["_target_"].endswith("Restart")
    schedule = stage.get("adversary_lr_schedule")
    if schedule and schedule["_target_"] != FOLLOWING:
        stage["adversary_lr_schedule"] = {"_target_": FOLLOWING, "_partial_": True, "schedule": schedule, "at": 0}
    engine = stage.get("engine") or {}
    if isinstance(engine.get("ways"), list):
        engine["ways"] = {WAYS.get(way["_target_"], way["_target_"]): way for way in engine["ways"]}


def update_data(data: dict[str, Any]) -> None:
    """Rename the keys of a set of shards in place."""
    if "sidecars" in data:
        data["parquet_columns"] = data.pop("sidecars").get("columns")
        data["background"] = "white"  # as it always was, before it was a key
    index = data.get("index") or {}
    if "count" in index:
        counted = index.pop("count")["_target_"]
        count_by = "stats" if counted.endswith("count_stats") else "headers"
        index |= {"_target_": f"{PACKAGE}data.tar.index.build_indexer", "count_by": count_by}
