"""A file of settings of the user's own, `--config FILE`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys.choices import conf_dir
from rlhf_ray.config.load import load_config, notes_of_files, read_config, to_yaml

OWN = """
# @package _global_
defaults:
  - override /algorithm: ppo
  - _self_
model: arithmetic
num_steps: 7
training:
  learning_rate: 1e-5
generation: {max_response_tokens: 9}
data.on_long_prompt: skip
"""


@pytest.fixture
def own(tmp_path):
    def write(text: str = OWN) -> str:
        (tmp_path / "own.yaml").write_text(text)
        return f"--config={tmp_path / 'own.yaml'}"

    return write


def test_choices_and_values_in_the_form_of_a_recipe(own):
    config = read_config([own()])
    assert config.algorithm.name == "ppo"
    assert config.model.path == "builtin:arithmetic"
    assert (config.num_steps, config.training.learning_rate) == (7, 1e-5)
    assert config.generation.max_response_tokens == 9
    assert config.data.on_long_prompt == "skip"


def test_the_command_line_wins_wherever_it_stands(own):
    file = own()
    for overrides in (
        [file, "algorithm=rloo", "num_steps=3"],
        ["algorithm=rloo", "num_steps=3", file],
    ):
        config = read_config(overrides)
        assert (config.algorithm.name, config.num_steps) == ("rloo", 3)


def test_a_group_that_is_chosen_on_the_command_line_begins_anew(own):
    """config.yaml of an output folder says every key of every group."""
    file = own(to_yaml(read_config(["recipe=demo", "algorithm.kl_coefficient=0.5", "num_steps=9"])))
    changed = read_config([file, "algorithm=rloo"])
    plain = read_config(["recipe=demo", "algorithm=rloo", "num_steps=9"])
    assert asdict(changed.algorithm) == asdict(plain.algorithm)
    assert asdict(changed.training) == asdict(plain.training)
    (note,) = notes_of_files([file, "algorithm=rloo"], changed)
    assert note.startswith(f"note: algorithm=rloo comes in the place of what {file} says of it: ")
    assert "algorithm.kl_coefficient" in note
    assert "algorithm.name" in note


def test_a_file_that_sets_keys_of_other_groups_takes_their_place(own):
    file = own(to_yaml(read_config(["recipe=demo"])))
    config = read_config([file, "training=gpu"])
    assert (config.training.dtype, config.critic.dtype) == ("bfloat16", "bfloat16")
    assert config.algorithm.name == "grpo"


def test_no_file_of_a_group(own):
    file = own("model: arithmetic\ndefaults:\n  - override /reward: null\n")
    assert read_config([file]).reward == read_config(["model=arithmetic"]).reward
    assert read_config(["reward=exact_match", "reward=null"]).reward == read_config([]).reward
    with pytest.raises(ConfigError, match="algorithm=null: there has to be one; there are: "):
        read_config(["algorithm=null"])


def test_of_two_files_the_last_one_wins(tmp_path):
    for name, steps in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"num_steps: {steps}\n")
    assert (
        read_config([f"--config={tmp_path}/a.yaml", f"--config={tmp_path}/b.yaml"]).num_steps == 2
    )


@pytest.mark.parametrize("recipe", ["demo", "pipeline_demo", "gpu_70b"])
def test_a_copied_recipe_is_that_recipe(own, recipe):
    text = (conf_dir() / "recipe" / f"{recipe}.yaml").read_text()
    copied = text.replace(f"recipe: {recipe}", "recipe: mine")
    ours = read_config([own(copied)])
    assert ours.recipe == "mine"
    theirs = read_config([f"recipe={recipe}", f"output_dir={ours.output_dir}"])
    theirs.recipe = "mine"
    assert asdict(ours) == asdict(theirs)


@pytest.mark.parametrize("overrides", [["recipe=demo"], ["stage=sft", "model=arithmetic"]])
def test_what_is_printed_is_read_again_as_the_same(own, overrides):
    config = read_config([*overrides, "seed=5"])
    file = own(to_yaml(config))
    again = read_config([file])
    assert again == config
    assert notes_of_files([file], again) == notes_of_files(overrides, config)


def test_what_the_stage_does_not_read_is_noted_and_not_refused(own):
    file = own("stage: sft\nmodel: arithmetic\nexamples: {path: x.jsonl}\nnum_steps: 9\nseed: 0\n")
    config = load_config([file])
    (note,) = notes_of_files([file], config)
    assert note == (
        f"note: {file} sets a key that stage=sft does not read, without effect: num_steps"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_step: 3\n", "num_step: unknown key; did you mean num_steps?"),
        ("algorithm: nope\n", "algorithm=nope: no such choice; there are: "),
        ("defaults:\n  - override /algoritm: ppo\n", "there is no group algoritm; there are: "),
        ("defaults: [demo]\n", "defaults: 'demo' is not of the form GROUP: NAME"),
        ("defaults: 3\n", "defaults: 3 is no list of GROUP: NAME"),
        ("defaults: demo\n", "defaults: 'demo' is no list of GROUP: NAME"),
        ("a: [1\n", "is no YAML of keys and values: "),
        ("- 1\n", "is no mapping of keys, as `num_steps: 20` is"),
        ("training: {learning_rate: 1e-400}\n", "line 1: 1e-400 is too near to 0"),
        ("seed: 1\nseed: 2\n", "found duplicate key seed"),
        ("\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path, text, words):
    file = tmp_path / "own.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_config([f"--config={file}"])
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_is_no_file(tmp_path):
    for path, words in ((tmp_path / "x.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=words):
            read_config([f"--config={path}"])
    large = Path(tmp_path / "large.yaml")
    large.write_text("#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="has more than 1,048,576 bytes"):
        read_config([f"--config={large}"])
