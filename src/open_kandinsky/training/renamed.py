"""What the classes of older runs are called now, so that a run that goes on is compared with what it was.

Weights need no table: the networks, schedules and parameterisations that weights/build.py lists keep their names.
"""

from typing import Any

RENAMED = {
    "data.cache.CachedData": "data.cached_data.CachedData",
    "data.pairs.buckets.AspectBuckets": "data.pairs.AspectBuckets",
    "data.pairs.buckets.OneShape": "data.pairs.OneShape",
    "data.pairs.captions.Captions": "data.pairs.Captions",
    "data.pairs.filters.Filters": "data.pairs.Filters",
    "data.shards.ShardData": "data.shard_data.ShardData",
    "data.tars.index.Indexer": "data.tar.index.Indexer",
    "data.tars.index.count_stats": "data.tar.index.count_stats",
    "data.tars.sidecars.NoSidecars": "data.tar.sample.NoSidecars",
    "data.tars.sidecars.ParquetSidecars": "data.tar.sample.ParquetSidecars",
    "data.tars.tar.count": "data.tar.reader.count",
    "callbacks.checkpoint_io.WholeCheckpoints": "training.checkpointing.WholeCheckpoints",
    "callbacks.random_numbers.RandomNumbers": "callbacks.seeding.RandomNumbers",
    "callbacks.sharded.Sharded": "training.checkpointing.ShardedStrategy",
    "networks.batch_norm.SharedBatchNorm": "networks.discriminator.SharedBatchNorm",
    "stages.adversary_rate.in_step": "stages.gan.following_schedule",
    "stages.adversary_weight.Adaptive": "stages.gan.AdaptiveWeight",
    "stages.adversary_weight.Constant": "stages.gan.ConstantWeight",
    "stages.codes.Never": "stages.movq.NoReset",
    "stages.codes.Restart": "stages.movq.RandomRestart",
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


def current(tree: Any) -> Any:
    """A saved config with each `_target_` as it is called now."""
    if isinstance(tree, dict):
        return {key: target(value) if key == "_target_" else current(value) for key, value in tree.items()}
    return [current(value) for value in tree] if isinstance(tree, list) else tree


def target(name: str) -> str:
    """Today's dotted name of a class or function; a name that was never changed is returned as it is."""
    return PACKAGE + RENAMED.get(name.removeprefix(PACKAGE), name.removeprefix(PACKAGE)) if PACKAGE in name else name
