"""Composition, precedence, conversion, absolute paths."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from rlhf_ray.config.compose import parse_overrides
from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys import choices
from rlhf_ray.config.keys.choices import conf_dir, group_choices
from rlhf_ray.config.load import load_config, read_config, to_yaml
from rlhf_ray.config.run import Config


def test_defaults_come_from_the_dataclasses_without_a_file():
    config = read_config([])
    assert config.num_steps == Config().num_steps
    assert config.publish == Config().publish
    assert config.deadlines == Config().deadlines


def test_every_key_of_the_default_files_is_read(tmp_path):
    # The default choices of conf/config.yaml.
    config = read_config([])
    assert (config.stage.name, config.algorithm.name) == ("rl", "grpo")
    assert config.placement.strategy == "disaggregated"
    assert config.generation.dtype == config.training.dtype == config.critic.dtype == "float32"


def test_command_line_beats_recipe_beats_group():
    group = read_config(["algorithm=ppo"])
    recipe = read_config(["recipe=demo_ppo"])
    line = read_config(["algorithm.kl_coefficient=0.2", "recipe=demo_ppo"])
    values = [config.algorithm.kl_coefficient for config in (group, recipe, line)]
    assert values == [0.05, 0.01, 0.2]


def test_the_last_override_wins():
    assert read_config(["num_steps=3", "num_steps=4"]).num_steps == 4


def test_a_choice_on_the_command_line_beats_the_recipes():
    config = read_config(["recipe=demo", "algorithm=ppo"])
    assert config.recipe == "demo"
    assert config.needs_critic


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.learning_rate=1e-4", lambda c: c.training.learning_rate, 1e-4),
        ("training.learning_rate='1e-4'", lambda c: c.training.learning_rate, 1e-4),
        ("+num_steps=7", lambda c: c.num_steps, 7),
        ("algorithm.reward_clip=5", lambda c: c.algorithm.reward_clip, 5.0),
        ("algorithm.value_clip=null", lambda c: c.algorithm.value_clip, None),
        ("generation.stop=['a, b',c]", lambda c: c.generation.stop, ["a, b", "c"]),
        ('data.system_prompt="a, b=c"', lambda c: c.data.system_prompt, "a, b=c"),
        ("critic={num_ranks:2}", lambda c: c.critic.num_ranks, 2),
        ("training={num_ranks:2}", lambda c: c.training.num_ranks, 2),
        ("num_steps=${samples_per_prompt}", lambda c: c.num_steps, 8),
        (
            "generation.extra_engine_args.block_size=32",
            lambda c: c.generation.extra_engine_args,
            {"block_size": 32},
        ),
        (
            "generation.extra_engine_args={hf_overrides:{a:1}}",
            lambda c: c.generation.extra_engine_args,
            {"hf_overrides": {"a": 1}},
        ),
        ("reward.model.clip=3", lambda c: c.reward.model.clip, 3.0),
        ("reward.model={clip:3}", lambda c: c.reward.model.clip, 3.0),
        ("reward={model:{name:taste}}", lambda c: c.reward.model.name, "taste"),
        (
            "reward.functions=[exact_match,{path:length,weight:0.5}]",
            lambda c: c.reward.functions,
            ["exact_match", {"path": "length", "weight": 0.5}],
        ),
    ],
)
def test_values(override, read, expected):
    value = read(read_config([override]))
    assert value == expected
    assert type(value) is type(expected)


def test_an_unset_mapping_is_not_shared_between_configurations():
    read_config(["generation.extra_engine_args.block_size=32"])
    assert read_config([]).generation.extra_engine_args == {}


def test_groups_are_plain_dataclasses():
    config = load_config(["recipe=demo"])
    assert isinstance(config, Config)
    assert dataclasses.is_dataclass(config.training)
    assert type(config.reward.functions) is list


def test_output_dir_is_absolute_and_follows_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(["recipe=demo"]).output_dir == str(tmp_path / "outputs" / "demo")
    assert load_config(["recipe=demo", "output_dir=/x/y"]).output_dir == "/x/y"


def test_paths_that_are_found_become_absolute_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    config = read_config(["data.path=rows.jsonl", "model.path=org/model"])
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert config.model.path == "org/model"
    assert config.critic.path is None
    assert read_config([]).model.path == ""


def test_resume_is_auto_never_or_an_absolute_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resumes = [read_config([f"resume={value}"]).resume for value in ("auto", "never", "a/b")]
    assert resumes == ["auto", "never", str(tmp_path / "a" / "b")]


def test_to_yaml_reads_back_equal():
    config = load_config(["recipe=demo_ppo", "generation.stop=['\\n']", "data.limit=3"])
    values = yaml.safe_load(to_yaml(config))
    assert values == dataclasses.asdict(config)


def test_composing_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_config(["recipe=demo"])
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_every_file_belongs_to_a_group_of_the_defaults_list():
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]
    listed = {name for entry in defaults if isinstance(entry, dict) for name in entry}
    assert listed == set(group_choices())


@pytest.mark.unit_slow
@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group, choices in group_choices().items() for choice in choices],
)
def test_every_choice_converts(group, choice):
    assert isinstance(read_config([f"{group}={choice}"]), Config)


def test_a_broken_file_is_named_in_a_message(tmp_path, monkeypatch):
    # A copy of conf/ with a recipe that chooses a file which does not exist.
    for file in conf_dir().rglob("*.yaml"):
        copy = tmp_path / "conf" / file.relative_to(conf_dir())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    broken = tmp_path / "conf" / "recipe" / "mine.yaml"
    broken.write_text("# @package _global_\ndefaults:\n  - override /algorithm: nope\n")
    monkeypatch.setattr(choices, "_PACKAGE_DIR", tmp_path)
    with pytest.raises(ConfigError, match=r"do not compose: .*algorithm/nope"):
        load_config(["recipe=mine"])
    broken.write_text("# @package _global_\na: [1\n")
    with pytest.raises(ConfigError, match=r"do not compose: .*mine\.yaml"):
        load_config(["recipe=mine"])
    broken.write_text("# @package _global_\ntrainig:\n  num_ranks: 2\n")
    with pytest.raises(ConfigError, match=r"trainig: unknown key; did you mean training"):
        load_config(["recipe=mine"])


def test_choices_and_values_are_separated():
    request, problems = parse_overrides(["algorithm=ppo", "algorithm.gamma=0.9", "recipe=null"])
    assert request.choices == (("algorithm", "ppo"), ("recipe", "null"))
    assert request.values == (("algorithm.gamma", 0.9),)
    assert problems == []


_ON_GPU = ["generation=gpu", "training=gpu", "training.zero_stage=2", "reference.zero_stage=2"]


@pytest.mark.parametrize(
    ("overrides", "kernel"),
    [
        (["recipe=demo"], "chunked"),
        (_ON_GPU, "auto"),
        ([*_ON_GPU, "generation.top_k=20"], "chunked"),
        ([*_ON_GPU, "reference.zero_stage=3", "algorithm.kl_coefficient=0.1"], "chunked"),
        (["recipe=gpu_70b"], "chunked"),
        (["recipe=gpu_70b", "model.head_kernel=liger"], "liger"),
        ([*_ON_GPU, "model.head_kernel=liger"], "liger"),
        ([*_ON_GPU, "model.head_kernel=chunked"], "chunked"),
    ],
)
def test_the_fused_head_kernel_is_for_runs_that_support_it(overrides, kernel):
    assert read_config(overrides).head_kernel == kernel


class TestStageOfARecipe:
    @pytest.fixture
    def recipe(self, tmp_path, monkeypatch):
        shutil.copytree(conf_dir(), tmp_path / "conf")
        monkeypatch.setattr(choices, "_PACKAGE_DIR", tmp_path)
        return tmp_path / "conf" / "recipe" / "mine.yaml"

    def test_a_name_in_the_recipe_does_not_beat_the_chosen_stage(self, recipe):
        recipe.write_text("# @package _global_\nstage: {name: pipeline}\n")
        assert read_config(["recipe=mine"]).stage.name == "pipeline"
        with pytest.raises(
            ConfigError, match=r"stage=plan: a chosen file sets stage\.name=pipeline"
        ):
            read_config(["recipe=mine", "stage=plan"])

    def test_plan_describes_reinforcement_learning_only(self, recipe):
        recipe.write_text("# @package _global_\ndefaults:\n  - override /stage: sft\n")
        assert read_config(["recipe=mine", "stage=sft"]).stage.name == "sft"
        with pytest.raises(ConfigError, match="what is chosen here is stage=sft; leave stage=plan"):
            read_config(["recipe=mine", "stage=plan"])
        with pytest.raises(ConfigError, match="add dry_run=true"):
            read_config(["recipe=pipeline_demo", "stage=plan"])

    @pytest.mark.parametrize("stages", [("plan", "sft"), ("sft", "plan"), ("plan", "rl")])
    def test_a_plan_and_another_stage_are_refused(self, stages):
        other = next(name for name in stages if name != "plan")
        words = f"stage=plan stage={other}: are two stages; write stage={other} dry_run=true"
        with pytest.raises(ConfigError, match=words):
            read_config(["recipe=demo", *(f"stage={name}" for name in stages)])

    @pytest.mark.parametrize("stage", ["stage: sft", "stage: {name: sft}"])
    def test_a_plan_of_a_file_for_another_stage_is_refused(self, tmp_path, stage):
        file = tmp_path / "own.yaml"
        file.write_text(f"{stage}\n")
        with pytest.raises(ConfigError, match="what is chosen here is stage=sft; leave stage=plan"):
            read_config([f"--config={file}", "stage=plan"])
        file.write_text("stage: {name: rl}\n")
        assert read_config([f"--config={file}", "stage=plan"]).stage.name == "plan"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rate=1e-400", "too near to 0 for a number here"),
        ("training.learning_rate='1e-400'", "too near to 0 for a number here"),
        ("training.learning_rate=4e-324", "would be 4.9406564584124654e-324"),
        ("training.learning_rate=5e-324", "would be 4.9406564584124654e-324"),
        ("training.learning_rate=1e-99999999999999999999", "too near to 0"),
        ("training.learning_rate=0." + "0" * 400 + "1", "too near to 0"),
        ("training.learning_rate=1_0e-400", "too near to 0"),
        ("algorithm.reward_clip=1e400", "1e400 is too large for a number here"),
        ("algorithm.reward_clip='-1e400'", "-1e400 is too large for a number here"),
        ("generation.temperature=123456789012345678901", "keeps 15 to 17 digits"),
        ("algorithm.reward_clip=9007199254740993", "keeps 15 to 17 digits"),
        ("algorithm.reward_clip=" + "9" * 400, "too large|keeps 15 to 17 digits"),
        ("reward.functions=[{path: exact_match, weight: 1e-400}]", "1e-400 is too near to 0"),
        ("generation.extra_engine_args={a:1e-400}", "1e-400 is too near to 0"),
        ("seed=1e400", "1e400 is too large"),
    ],
)
def test_a_number_that_would_be_read_as_another_is_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        read_config([override])


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.learning_rate=1e-310", lambda c: c.training.learning_rate, 1e-310),
        ("training.learning_rate=0e-400", lambda c: c.training.learning_rate, 0.0),
        (
            "training.learning_rate=0.12345678901234567890123",
            lambda c: c.training.learning_rate,
            0.12345678901234568,
        ),
        ("num_steps=1_000", lambda c: c.num_steps, 1000),
        ("generation.stop=['1e-400']", lambda c: c.generation.stop, ["1e-400"]),
        ("data.system_prompt=1e-400", lambda c: c.data.system_prompt, "1e-400"),
        ("data.path=rows/1e-400.jsonl", lambda c: c.data.path, "rows/1e-400.jsonl"),
    ],
)
def test_other_numbers_are_read_as_they_are_meant(override, read, expected):
    assert read(read_config([override])) == expected


def test_a_number_of_a_file_that_would_be_read_as_another_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "conf"
    shutil.copytree(conf_dir(), folder)
    recipe = folder / "recipe" / "mine.yaml"
    recipe.write_text("# @package _global_\n# not 1e-500\ntraining: {learning_rate: 1.0e-400}\n")
    monkeypatch.setattr(choices, "_PACKAGE_DIR", tmp_path)
    with pytest.raises(ConfigError, match=r"mine.yaml line 3: 1.0e-400 is too near to 0"):
        read_config(["recipe=mine"])
