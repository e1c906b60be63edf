"""Keys that a stage does not read are refused, or named where a recipe sets them."""

from __future__ import annotations

import pytest
import yaml

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys.choices import conf_dir, group_choices
from rlhf_ray.config.keys.readers import is_read, readers
from rlhf_ray.config.keys.unread import replacements, unread_note
from rlhf_ray.config.load import load_config, notes_of_files, read_config
from rlhf_ray.config.schema import all_keys
from rlhf_ray.config.stages import RL_STAGES, STAGE_NAMES
from rlhf_ray.stages.pipeline import read_steps

SFT = ("stage=sft", "model.path=a/b", "examples.path=rows.jsonl")
PREPARE = ("stage=prepare_data", "prepare.sources.a={path:a.jsonl,kind:text}")
PIPELINE = ("stage=pipeline", "pipeline.stages.a={stage:sft,model.path:m,examples.path:e}")
CASES = [
    (SFT, "num_steps=2", "does not read num_steps; set fit.max_steps instead"),
    (SFT, "num_steps=100", "set fit.max_steps instead"),
    (SFT, "prompts_per_step=2", "set fit.batch_size instead"),
    (SFT, "algorithm=dapo", "reads no key of algorithm, so it would change nothing; remove it"),
    (SFT, "data.path=x", "set examples.path instead"),
    (SFT, "data={path:x}", "data.path=x: stage=sft does not read data.path"),
    (SFT, "data.answer_column=x", "set examples.answer_column instead"),
    (SFT, "critic.learning_rate=1", "set training.learning_rate instead"),
    (SFT, "preference.beta=1", "it is read by: preference"),
    (SFT, "reference.path=a/b", "so it would change nothing; remove it (it is read by: rl"),
    (
        ("stage=preference", *SFT[1:]),
        "reference.path=a/b",
        "the reference is the model that training starts from (model.path); remove it",
    ),
    (SFT, "evaluation.every=1", "set fit.eval_every instead"),
    (PREPARE, "generation.temperature=0.5", "stage=prepare_data does not read"),
    (PREPARE, "data.path=x", "set prepare.sources.NAME.path instead"),
    (("recipe=demo",), "fit.max_steps=3", "set num_steps instead"),
    (("recipe=demo", "stage=plan"), "examples.path=x", "set data.path instead"),
    (
        ("stage=serve_reward", "reward.model.path=a/b"),
        "model.path=a/b",
        "set reward.model.path instead",
    ),
    (
        ("stage=chat", "model.path=a/b", "generation=cpu"),
        "generation.temperature=1",
        "set chat.temperature instead",
    ),
    (PIPELINE, "num_steps=2", "(rl): pipeline.stages.NAME.num_steps=2"),
    (PIPELINE, "placement.env.A=1", "pipeline.stages.NAME.placement.env.A=1"),
]


@pytest.mark.parametrize(("base", "unread", "words"), CASES)
def test_a_key_that_the_stage_does_not_read_is_refused(base, unread, words):
    load_config(base)
    with pytest.raises(ConfigError) as caught:
        load_config([*base, unread])
    assert words in str(caught.value)
    assert "is wrong: " in str(caught.value), "it is the only problem"
    read_config([*base, unread])


def test_all_are_named_next_to_other_problems():
    with pytest.raises(ConfigError) as caught:
        load_config(["stage=sft", "model.path=a/b", "data.path=x", "num_steps=2", "seed=x"])
    told = [line.split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert told == [
        "  - seed=x",
        "  - data.path=x",
        "  - num_steps=2",
        "  - examples.path is empty",
    ]


def test_a_stage_of_a_pipeline_is_held_to_what_it_reads():
    config = load_config([*PIPELINE, "pipeline.stages.a.num_steps=2"])
    with pytest.raises(ConfigError, match=r"pipeline\.stages\.a: .*set fit\.max_steps instead"):
        read_steps(config)
    fine = load_config([*PIPELINE, "pipeline.stages.a.fit.max_steps=2", "seed=4"])
    assert read_steps(fine)[0].config.fit.max_steps == 2


READ_BY = {
    "model.random_weights": "pretrain sft reward_model preference rl plan",
    "model.chat_template": "pretrain sft reward_model preference rl evaluate compress export serve "
    "chat plan",
    "deadlines.generate_s": "rl evaluate compress plan",
    "deadlines.reference_s": "preference rl plan",
    "deadlines.publish_s": "rl plan",
    "deadlines.start_s": "pretrain sft reward_model preference rl evaluate compress serve_reward "
    "serve chat pipeline plan",
    "deadlines.stop_s": "pretrain sft reward_model preference rl evaluate compress serve chat plan",
    "deadlines.ray_s": "pretrain sft reward_model preference rl evaluate compress serve pipeline "
    "plan",
    "examples.pack_texts": "pretrain",
    "examples.text_column": "pretrain",
    "examples.messages_column": "sft evaluate compress",
    "examples.prompt_column": "sft reward_model preference evaluate compress",
    "examples.answer_column": "sft preference evaluate compress",
    "examples.chosen_column": "reward_model preference",
    "examples.ranking_column": "reward_model preference",
    "examples.label_column": "preference",
}


@pytest.mark.parametrize("key", READ_BY)
def test_a_key_is_read_by_the_stages_that_use_it(key):
    assert [name for name in STAGE_NAMES if is_read(key, name)] == sorted(
        READ_BY[key].split(), key=STAGE_NAMES.index
    )


def test_answers_may_be_the_chosen_ones_of_a_preference_set():
    """`sft` does not read the columns of preferences, so that they cannot be the same."""
    assert load_config([*SFT, "examples.answer_column=chosen"]).examples.answer_column == "chosen"
    with pytest.raises(ConfigError, match=r"examples\.answer_column=prompt|is also"):
        load_config([*SFT, "examples.answer_column=prompt"])


def test_the_wait_of_ranks_covers_what_the_stage_waits_for_and_no_more():
    short = ["deadlines.update_s=10", "deadlines.checkpoint_s=20", "deadlines.evaluate_s=30"]
    assert load_config([*SFT, *short]).collective_timeout_s == 27
    preference = [word.replace("sft", "preference") for word in SFT]
    longer = load_config([*preference, *short, "deadlines.reference_s=100"])
    assert longer.collective_timeout_s == 90
    rl = load_config(["recipe=demo", *short, "deadlines.publish_s=700"])
    assert rl.collective_timeout_s == 630


def test_what_every_stage_reads_is_never_refused():
    for stage in STAGE_NAMES:
        for key in ("seed", "output_dir", "resume", "dry_run", "observe.progress", "stage.name"):
            assert is_read(key, stage)


def test_every_key_is_read_by_a_stage():
    assert [key for key in all_keys() if not readers(key)] == []
    assert readers("placement.env.NAME") == readers("placement.env")
    with pytest.raises(KeyError):
        readers("nope.nope")


def test_replacements_are_keys_that_the_stage_reads():
    for stage, key, other in replacements():
        assert not is_read(key, stage), (stage, key)
        known = other.replace(".NAME.path", "").replace(".NAME", "")
        assert known in all_keys(), other
        assert is_read(other, stage), (stage, other)


@pytest.mark.parametrize("recipe", group_choices()["recipe"])
def test_the_own_stage_of_a_recipe_reads_all_of_its_keys(recipe):
    config = read_config([f"recipe={recipe}"])
    assert notes_of_files([f"recipe={recipe}"], config) == []


def test_keys_of_a_recipe_that_another_stage_does_not_read_are_named():
    content = yaml.safe_load((conf_dir() / "recipe" / "demo.yaml").read_text())
    note = unread_note("sft", "recipe=demo", content)
    assert note is not None
    assert note.startswith("note: recipe=demo sets 12 keys that stage=sft does not read, without")
    assert "algorithm=grpo, data=arithmetic, reward=exact_match" in note
    assert note.endswith("and 4 more")
    assert all(unread_note(stage, "recipe=demo", content) is None for stage in RL_STAGES)
    one = unread_note("sft", "recipe=mine", {"fit": {"max_steps": 2}, "num_steps": 2})
    assert one == "note: recipe=mine sets a key that stage=sft does not read, without effect: " + (
        "num_steps"
    )
