"""The batch table against numbers computed by hand."""

from __future__ import annotations

from rlhf_ray.config.batch_table import BatchRow, batch_table, render_rows
from rlhf_ray.config.load import load_config

UNEVEN = [
    "recipe=demo",
    "algorithm=ppo",
    "num_steps=10",
    "prompts_per_step=15",
    "samples_per_prompt=7",
    "max_staleness=1",
    "algorithm.num_epochs=2",
    "algorithm.num_mini_batches=4",
    "generation.num_engines=4",
    "generation.max_num_seqs=20",
    "training.num_ranks=2",
    "training.max_tokens_per_micro_batch=200",
    "critic.num_ranks=3",
    "critic.max_tokens_per_micro_batch=38",
    "reference.max_tokens_per_micro_batch=380",
]


def _values(overrides):
    return {row.name: row.value for row in batch_table(load_config(overrides))}


def test_demo():
    values = _values(["recipe=demo"])
    assert values["samples per step"] == "128"
    assert values["batches in flight"] == "1"
    assert values["longest sample"] == "38"
    assert values["optimiser steps per step"] == "1"
    assert values["samples per optimiser step"] == "128"
    assert values["samples in all"] == "7,680"
    assert not any(name.startswith("critic") for name in values)


def test_uneven_sizes_are_rounded_up():
    values = _values(UNEVEN)
    assert values["samples per step"] == "105"
    assert values["batches in flight"] == "2"
    # 30 prompts in flight over 4 engines.
    assert values["prompts per engine"] == "8"
    # 210 samples in flight, 4 x 20 places.
    assert values["samples generated at once"] == "80"
    assert values["optimiser steps per step"] == "8"
    # 105 / 4
    assert values["samples per optimiser step"] == "27"
    assert values["tokens per optimiser step"] == "1,026"
    # 27 samples on 2 ranks; 200 // 38 = 5 of them in a micro-batch.
    assert values["learner: samples per rank"] == "14"
    assert values["learner: micro-batches per rank"] == "3"
    assert values["critic: samples per rank"] == "9"
    assert values["critic: micro-batches per rank"] == "9"
    # The reference scores the whole batch once.
    assert values["reference: samples per rank"] == "105"
    assert values["reference: micro-batches per rank"] == "11"
    assert values["optimiser steps in all"] == "80"
    assert values["samples in all"] == "1,050"


def test_over_sampling_starts_more_prompts():
    values = _values(["recipe=demo", "rollout_selection.oversample=1.3"])
    assert values["prompts per step"] == "16"
    # 16 x 1.3 = 20.8, rounded up; 8 samples of each, and 128 places.
    assert values["prompts started per step"] == "21"
    assert values["prompts per engine"] == "21"
    assert "prompts started per step" not in _values(["recipe=demo"])


def test_a_stage_that_learns_from_examples():
    overrides = ["stage=sft", "model.path=a/b", "examples.path=x", "examples.max_tokens=100"]
    overrides += ["fit.batch_size=25", "fit.max_steps=40", "fit.num_epochs=2"]
    overrides += ["training.num_ranks=2", "training.max_tokens_per_micro_batch=450"]
    assert _values(overrides) == {
        "samples per optimiser step": "25",
        "longest sample": "100",
        "tokens per optimiser step": "2,500",
        # 25 samples on 2 ranks; 450 // 100 = 4 of them in a micro-batch.
        "learner: samples per rank": "13",
        "learner: micro-batches per rank": "4",
        "epochs": "2",
        "optimiser steps in all": "40",
        "learner: learning rate": "2e-05",
        "learner: schedule": "constant",
        "learner: warm-up": "0",
    }


def test_a_stage_that_learns_from_rankings_or_feedback():
    overrides = ["stage=preference", "model.path=a/b", "examples.path=x", "fit.batch_size=10"]
    overrides += ["examples.max_tokens=100", "training.max_tokens_per_micro_batch=450"]
    values = _values(overrides)
    assert values["rankings per optimiser step"] == "10"
    assert values["tokens per optimiser step"] == "2,000"
    # 450 // 200 = 2 pairs in a micro-batch.
    assert values["learner: micro-batches per rank"] == "5"
    of_feedback = _values([*overrides, "preference.loss=kto"])
    assert of_feedback["samples per optimiser step"] == "10"
    assert of_feedback["learner: micro-batches per rank"] == "3"


def test_rankings_have_two_answers_or_more():
    overrides = ["stage=reward_model", "model.path=a/b", "examples.path=x"]
    overrides += ["examples.max_tokens=100", "fit.batch_size=25", "training.num_ranks=2"]
    overrides += ["training.max_tokens_per_micro_batch=450"]
    assert _values(overrides) == {
        "rankings per optimiser step": "25",
        "longest sample": "100",
        "tokens per optimiser step": "5,000",
        # 25 rankings on 2 ranks; 450 // 200 = 2 pairs in a micro-batch.
        "learner: rankings per rank": "13",
        "learner: micro-batches per rank": "7",
        "epochs": "1",
        "learner: learning rate": "1e-05",
        "learner: schedule": "constant",
        "learner: warm-up": "0",
    }


def test_learning_rates_are_in_the_table():
    overrides = ["recipe=demo_ppo", "training.schedule=cosine", "training.warmup_steps=3"]
    rows = {row.name: row for row in batch_table(load_config([*overrides]))}
    assert rows["learner: learning rate"].value == "0.0002"
    assert rows["learner: schedule"].computed_from.endswith("0.5 of the peak at the last step")
    assert rows["learner: warm-up"].value == "3"
    assert rows["critic: learning rate"].value == "0.001"
    by_default = batch_table(load_config(["recipe=demo", "training.learning_rate=null"]))
    (rate,) = [row for row in by_default if row.name == "learner: learning rate"]
    assert rate.value == "1e-06"
    assert rate.computed_from == "training.learning_rate, at its peak; the default of stage=rl"


def test_rendering_is_aligned():
    text = render_rows([BatchRow("a", "1", "x"), BatchRow("long name", "1,000", "")])
    assert text.splitlines() == ["a              1  x", "long name  1,000"]


def test_texts_in_addition_to_samples():
    mixed = ["recipe=demo", "texts.path=a.jsonl", "algorithm.ptx_coefficient=0.1"]
    values = _values([*mixed, "texts.texts_per_step=24", "texts.max_tokens=100"])
    assert values["texts per optimiser step"] == "24"
    assert values["tokens of texts per optimiser step"] == "2,400"
    assert not any("texts" in name for name in _values(["recipe=demo"]))


def test_a_reward_model_scores_group_by_group():
    keys = ["reward.model.path=a/b", "reward.model.max_tokens_per_micro_batch=80"]
    name = "reward model: micro-batches per rank"
    assert name not in _values(UNEVEN)
    # 7 samples, 2 of 38 tokens at a time.
    assert _values([*UNEVEN, *keys])[name] == "4"
    sharded = ["reward.model.zero_stage=3", "reward.model.num_ranks=3"]
    assert _values([*UNEVEN, *keys, *sharded])[name] == "2"
