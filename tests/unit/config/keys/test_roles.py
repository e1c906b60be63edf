"""Keys of parts that a run does not start are named, and the run goes on."""

from __future__ import annotations

import pytest

from rlhf_ray.config.load import load_config, notes_of_parts
from rlhf_ray.main import main

DEMO = ("recipe=demo",)
CASES = [
    (("critic.path=/nowhere",), "critic.path is", "algorithm.advantage=group has no critic"),
    (("algorithm.gae_lambda=0.9",), "algorithm.gae_lambda is", "advantage=group has no critic"),
    (
        ("critic.learning_rate=1e-3", "critic={zero_stage:1}"),
        "critic.learning_rate, critic.zero_stage are",
        "algorithm.advantage=group has no critic",
    ),
    (
        ("reference.path=/nowhere", "algorithm.kl_coefficient=0"),
        "reference.path is",
        "algorithm.kl_coefficient=0 needs no reference",
    ),
    (("reward.model.dtype=float32",), "reward.model.dtype is", "reward.model.path is null"),
    (("reward.judge.temperature=0.5",), "reward.judge.temperature is", "judge.model is null"),
    (("reward.http.deadline_s=9",), "reward.http.deadline_s is", "reward.url is null"),
    (("texts.max_tokens=9",), "texts.max_tokens is", "ptx_coefficient=0 learns from no texts"),
]
STARTED = [
    (*DEMO, "num_steps=3", "algorithm.kl_coefficient=0.1", "reference.zero_stage=0"),
    ("recipe=demo_ppo", "critic.learning_rate=1e-3", "algorithm.gae_lambda=0.9"),
    (
        *DEMO,
        "algorithm.kl_controller=scheduled",
        "algorithm.kl_final=0.1",
        "reference.zero_stage=0",
    ),
    ("stage=preference", "model.path=a/b", "examples.path=rows.jsonl", "training.zero_stage=0"),
]


@pytest.mark.parametrize(("arguments", "keys", "reason"), CASES)
def test_keys_of_a_part_that_is_not_started_are_named(arguments, keys, reason):
    overrides = [*DEMO, *arguments]
    (note,) = notes_of_parts(overrides, load_config(overrides))
    assert note.startswith(f"note: {keys} not read by this run: ")
    assert note.endswith(reason)


@pytest.mark.parametrize("overrides", STARTED)
def test_keys_that_the_run_reads_have_no_note(overrides):
    assert notes_of_parts(list(overrides), load_config(list(overrides))) == []


def test_the_command_says_it_and_goes_on(tmp_path, capsys):
    arguments = ["recipe=demo", "stage=plan", "critic.path=/nowhere", f"output_dir={tmp_path}/out"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "rlhf_ray: note: critic.path is not read by this run: " in said
