"""Values by the names of other libraries: the message names the choice that is meant."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.keys.foreign_values import _MISSING, FOREIGN_VALUES
from rlhf_ray.config.keys.hints import OTHER_ALGORITHMS
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.schema import all_keys


def _refused(argument: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read_config([argument])
    return str(refused.value)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("preference.loss=dpo", "did you mean sigmoid (DPO's loss)?"),
        ("preference.loss=DPO", "did you mean sigmoid (DPO's loss)?"),
        ("preference.loss=kto_pair", "did you mean kto, whose rows have single answers"),
        ("preference.loss=hinged", "did you mean hinge?"),
        ("preference.loss=IPO", "did you mean ipo?"),
        ("preference.loss=slic", "did you mean hinge (SLiC's loss)?"),
        ("preference.loss=apo_zero", "kto; apo_zero is not implemented"),
        ("algorithm.advantage=grpo", "did you mean group (GRPO's advantages; algorithm=grpo is"),
        ("algorithm.advantage=reinforce++", "did you mean returns (REINFORCE++'s advantages;"),
        ("algorithm.advantage=reinforce_plus_plus", "did you mean returns (REINFORCE++'s"),
        (
            "algorithm.advantage=reinforce++-baseline",
            "settings of algorithm=reinforce_pp_baseline?",
        ),
        ("algorithm.advantage=GAE", "did you mean gae?"),
        ("algorithm.advantage=dr_grpo", "did you mean group, with algorithm.normalize_by_std=f"),
        ("algorithm.advantage=gpg", "gae; gpg is not implemented"),
        ("algorithm.kl_estimator=low_var_kl", "did you mean k3?"),
        ("algorithm.reduction=seq-mean-token-sum-norm", "did you mean constant_length (Dr. GRPO)?"),
        ("algorithm.policy_loss=vanilla", "did you mean clip (PPO's loss)?"),
        ("training.dtype=bf16", "did you mean bfloat16?"),
        ("critic.schedule=constant_with_warmup", "did you mean constant, with training.warmup_st"),
        ("model.attention=flash_attn", "did you mean flash_attention_2?"),
        ("algorithm=reinforce++", "did you mean algorithm=reinforce_pp?"),
        ("algorithm=gae", "did you mean algorithm=ppo?"),
    ],
)
def test_the_choice_that_is_meant_is_named(argument, words):
    assert words in _refused(argument)


def test_a_value_that_means_nothing_has_no_hint():
    assert _refused("preference.loss=xyz").endswith(
        "must be one of sigmoid, robust, ipo, hinge, kto"
    )
    assert _refused("training.zero_stage=7").endswith("must be one of 0, 1, 2, 3")


def test_the_tables_name_keys_and_choices_that_exist():
    keys = all_keys()
    for name, values in FOREIGN_VALUES.items():
        own = [key for key in keys.values() if name in (key.name, key.name.rpartition(".")[2])]
        assert own, name
        for meant in values.values():
            assert meant.split()[0].rstrip(",") in own[0].setting.choices, (name, meant)
        assert not set(values) & {*map(str, own[0].setting.choices)}, "a choice means itself"
    assert set(_MISSING) <= set(keys)
    assert set(OTHER_ALGORITHMS.values()) <= set(group_choices()["algorithm"])
    for algorithm in OTHER_ALGORITHMS.values():
        load_config(["recipe=demo", f"algorithm={algorithm}"])
