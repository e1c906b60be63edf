"""Keys that decide what is optimised, and the rule about accepting their change."""

from __future__ import annotations

import pytest

from rlhf_ray.config import objective_keys as module
from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_config
from rlhf_ray.config.objective_keys import is_accepted, is_objective, objective_keys
from rlhf_ray.config.schema import all_groups, all_keys, values_of

DECIDES = [
    "reward.functions",
    "reward.url",
    "reward.on_failure",
    "reward.model.path",
    "reward.model.weight",
    "reward.judge.rubric",
    "reward.judge.temperature",
    "algorithm.kl_coefficient",
    "algorithm.policy_loss",
    "algorithm.clip_ratio_high",
    "generation.temperature",
    "generation.top_k",
    "generation.max_response_tokens",
    "reference.path",
    "data.system_prompt",
    "preference.beta",
    "preference.loss",
    "reward_model.centring_coefficient",
]
ONLY_LISTED = [
    "training.learning_rate",
    "training.zero_stage",
    "num_steps",
    "deadlines.update_s",
    "generation.num_engines",
    "generation.dtype",
    "reward.num_workers",
    "reward.timeout_s",
    "reward.max_failure_rate",
    "reward.model.num_gpus",
    "reward.judge.num_engines",
    "reward.judge.timeout_s",
    "reward.http.max_retries",
    "reward.http.deadline_s",
    "placement.strategy",
    "observe.progress",
    "checkpoint.keep_last",
]


@pytest.mark.parametrize("key", DECIDES)
def test_decides_what_is_optimised(key):
    assert key in all_keys()
    assert is_objective(key)


@pytest.mark.parametrize("key", ONLY_LISTED)
def test_is_only_listed(key):
    assert key in all_keys()
    assert not is_objective(key)


def test_every_entry_of_the_tables_names_a_key():
    """A renamed key or group would otherwise no longer be compared."""
    assert [name for name in module._DECIDES if name not in {*all_keys(), *all_groups()}] == []
    parts = {part for key in all_keys() for part in key.split(".")[1:]}
    assert [name for name in module._RUNS if name not in parts] == []
    for group in module._DECIDES:
        assert any(key == group or key.startswith(f"{group}.") for key in objective_keys()), group


def test_a_group_accepts_its_keys():
    assert is_accepted("reward.model.path", ["reward"])
    assert is_accepted("reward.model.path", ["reward.model"])
    assert is_accepted("reward.model.path", ["seed", "reward.model.path"])
    assert not is_accepted("reward_model.use_margins", ["reward"])
    assert not is_accepted("reward.model.path", ["reward.model.pat", "algorithm"])
    assert not is_accepted("reward.model.path", [])


SFT = ["stage=sft", "model.path=x/y", "examples.path=x/y"]


@pytest.mark.parametrize("stage", [["recipe=demo"], SFT], ids=["rl", "sft"])
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("seed", "seed needs no acceptance"),
        ("training.learning_rate", "training.learning_rate needs no acceptance"),
        ("algorithm.kl_coeficient", "did you mean algorithm.kl_coefficient?"),
        ("training", "there is no key or group 'training'"),
    ],
)
def test_an_entry_that_accepts_nothing_is_refused(stage, entry, words):
    with pytest.raises(ConfigError) as refused:
        load_config([*stage, f"checkpoint.accept_changes=[{entry}]"])
    assert "checkpoint.accept_changes: " in str(refused.value)
    assert words in str(refused.value)


def test_keys_and_groups_are_taken():
    entries = "[reward,reward.model,algorithm.kl_coefficient]"
    config = load_config(["recipe=demo", f"checkpoint.accept_changes={entries}"])
    assert config.checkpoint.accept_changes[0] == "reward"


def test_all_values_are_read_by_their_keys():
    config = load_config(["recipe=demo", "training.learning_rate=0.25"])
    values = values_of(config)
    assert list(values) == list(all_keys())
    assert values["training.learning_rate"] == 0.25
    assert values["recipe"] == "demo"
