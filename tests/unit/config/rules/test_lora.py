"""Rules of adapters and frozen weights."""

from __future__ import annotations

from tests.unit.config.rules.cases import COLOCATED_GPU, GPU, check_broken_values, check_rule, each

CASES = [
    (
        "a cache kept for nothing",
        [],
        ["publish.keep_cache=true"],
        ["publish.keep_cache=true", "max_staleness=0", "set keep_cache to false"],
        ["publish.keep_cache=true", "max_staleness=1"],
    ),
    (
        "weights for stages on other nodes",
        [*GPU, "generation.pipeline_parallel_size=2"],
        ["publish.transport=object_store"],
        ["generation.pipeline_parallel_size=2", "publish.transport=object_store", "collective"],
        ["publish.transport=collective"],
    ),
    (
        "adapter and frozen weights",
        ["training.lora.r=8"],
        ["training.freeze_layers=1"],
        ["training.lora.r=8", "training.freeze=[]", "training.freeze_layers=1", "training.lora.r"],
        ["training.lora.r=0", "training.freeze_layers=1"],
    ),
    (
        "adapter of nothing",
        ["algorithm=ppo", "critic.lora.r=8"],
        ["critic.lora.target_modules=[]"],
        ["critic.lora.target_modules=[]", "all-linear"],
        ["critic.lora.target_modules=[all-linear]"],
    ),
    (
        "adapter that is averaged",
        ["training.ema_decay=0.9"],
        ["training.lora.r=8"],
        ["training.ema_decay=0.9", "training.lora.r=8", "to null"],
        ["training.lora.r=8", "training.ema_decay=null"],
    ),
    (
        "adapter on random weights",
        ["stage=pretrain", "examples.path=rows.jsonl", "model.random_weights=true"],
        ["training.lora.r=8"],
        ["model.random_weights=true", "training.lora.r to 0"],
        ["training.lora.r=0"],
    ),
    (
        "frozen random weights",
        ["stage=pretrain", "examples.path=rows.jsonl", "model.random_weights=true"],
        ["training.freeze=[model.norm.*]"],
        ["model.random_weights=true", "training.freeze to []"],
        ["training.freeze=[]"],
    ),
    (
        "adapter that is not there to publish",
        [],
        ["publish.lora=adapter"],
        ["publish.lora=adapter", "training.lora.r=0", "merged"],
        ["publish.lora=adapter", "training.lora.r=512"],
    ),
    (
        "adapter too large to publish",
        ["publish.lora=adapter", "training.lora.r=512"],
        ["training.lora.r=513"],
        ["training.lora.r=513", "rank of 512", "merged"],
        ["publish.lora=merged", "training.lora.r=513"],
    ),
    (
        "adapter whose reference is to move",
        ["training.lora.r=8"],
        ["algorithm.reference_every=1"],
        ["algorithm.reference_every=1", "training.lora.r=8", "reference.source to own"],
        ["algorithm.reference_every=1", "reference.source=own"],
    ),
    (
        "adapter on shared GPUs",
        [*COLOCATED_GPU, "training.zero_stage=2"],
        ["training.lora.r=8"],
        ["placement=colocated", "training.lora.r=8", "disaggregated"],
        ["training.lora.r=8", "placement=disaggregated"],
    ),
]


@each(CASES)
def test_rule(case):
    check_rule(case)


@each(CASES)
def test_broken_values_are_not_checked(case):
    check_broken_values(case)
