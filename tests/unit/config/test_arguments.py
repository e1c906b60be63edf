"""Values as people type them: paths of all languages, senseless numbers, names of any length."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config.convert import Conversion
from rlhf_ray.config.errors import ConfigError, RequestError
from rlhf_ray.config.groups.prepare_sources import read_source
from rlhf_ray.config.load import load_config, load_values, read_config
from rlhf_ray.config.schema import all_keys, path_keys
from rlhf_ray.config.setting import largest
from rlhf_ray.main import main


def refused_lines(*arguments: str) -> list[str]:
    """One sentence for every refused argument, in their order; all in one message."""
    with pytest.raises(ConfigError) as refused:
        read_config(list(arguments))
    return str(refused.value).split("\n  - ")[1:]


NUMBERS = [key for key in all_keys().values() if key.takes(int) or key.takes(float)]
TRUTHS = [key for key in all_keys().values() if key.takes(bool)]
PATHS = [key.name for key in path_keys() if not key.is_mapping]
NAMES = {
    "umlauts": "Läufe/größe",
    "Japanese": "出力/モデル",
    "Arabic with a joiner": "مدل\u200cها",
    "spaces": "my runs/first one",
    "a sign of Hydra": "a=b",
    "brackets": "run[1]",
    "brackets first": "[old]/run",
    "braces": "run{1}",
    "a quote": "it's",
    "two quotes": '"it\'s"/x\\y',
    "a hash": "run#1",
    "an at": "run@host",
    "parentheses": "run (copy)",
    "an exclamation mark": "run!",
    "a backslash": "a\\b",
    "an ampersand": "a&b;c|d",
    "a number": "007",
    "another number": "1e3",
    "a truth": "true",
    "a percent sign": "100%",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("key", ["output_dir", "model.path", "examples.eval_path", "resume"])
def test_a_path_is_taken_as_it_is_typed(key, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    if name.startswith('"'):
        with pytest.raises(ConfigError):
            read_config([f"{key}={name}"])
        return
    group, _, last = key.rpartition(".")
    for given in (name, str(tmp_path / name)):
        config = read_config([f"{key}={given}"])
        owner = vars(config)[group] if group else config
        assert vars(owner)[last] == str(tmp_path / name)


def test_a_path_in_a_mapping_is_taken_as_it_is_typed(tmp_path):
    (tmp_path / "größe =1").mkdir()
    config = read_config([f"evaluation.models.a={tmp_path}/größe =1"])
    assert config.evaluation.models == {"a": f"{tmp_path}/größe =1"}


TEXTS_IN_BRACKETS = {
    "generation.stop=[1.10,1_000,TRUE,1e-400, 7 ]": ["1.10", "1_000", "TRUE", "1e-400", "7"],
    "training.freeze=[1.10,'1.20']": ["1.10", "1.20"],
    "placement.env={X:1.10,Z:1_000,1.0:no}": {"X": "1.10", "Z": "1_000", "1.0": "no"},
    "placement.env.X=1.10": {"X": "1.10"},
    "placement={env:{X:1.10}}": {"X": "1.10"},
    "pipeline.report={1_0:2.0}": {"1_0": "2.0"},
    "model={path:1.10}": "1.10",
}


@pytest.mark.parametrize("argument", TEXTS_IN_BRACKETS)
def test_texts_in_lists_and_mappings_are_taken_as_they_are_typed(argument):
    config = read_config([argument])
    key = re.split("[={]", argument)[0]
    group, _, last = {"placement": "placement.env", "model": "model.path"}.get(key, key).partition(
        "."
    )
    assert vars(vars(config)[group])[last.removesuffix(".X")] == TEXTS_IN_BRACKETS[argument]


def test_numbers_in_brackets_stay_numbers():
    config = read_config(
        [
            "prepare.split=[1.0,2,3_0]",
            "rollout_selection.task_weights={1.10:2.50}",
            "generation.extra_engine_args={a:1e-3,b:[1_0,true]}",
            "pipeline.stages={b:{num_steps:1_0,seed:int(2.0)}}",
        ]
    )
    assert config.prepare.split == [1.0, 2.0, 30.0]
    assert config.rollout_selection.task_weights == {"1.10": 2.5}
    assert config.generation.extra_engine_args == {"a": 0.001, "b": [10, True]}
    assert config.pipeline.stages == {"b": {"num_steps": 10, "seed": 2}}


@pytest.mark.parametrize(
    "argument",
    [
        "pipeline.stages={b:{stage:sft,examples:{prompt_column:1.10},training:{freeze:[2.0]}}}",
        "pipeline.stages={b:{stage:sft,examples.prompt_column:1.10,training.freeze:[2.0]}}",
        "pipeline.stages.b={stage:sft,examples.prompt_column:1.10,training.freeze:[2.0]}",
    ],
)
def test_texts_of_the_stages_of_a_pipeline_are_taken_as_they_are_typed(argument):
    values = read_config([argument]).pipeline.stages["b"]
    stage = Conversion()
    stage.set_tree(values)
    config = stage.finish()
    assert (config.examples.prompt_column, config.training.freeze) == ("1.10", ["2.0"])
    key = "pipeline.stages.b.examples.prompt_column"
    values = read_config(["pipeline.stages.b={stage:sft}", f"{key}=1.10"]).pipeline.stages["b"]
    assert values["examples"]["prompt_column"] == "1.10"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"model.path": 1.1}, "model.path=1.1: 1.1"),
        ({"generation": {"stop": ["a", 1.1]}}, r"generation.stop=\['a', 1.1\]: 1.1"),
        ({"placement": {"env": {"X": False}}}, r"placement.env={'X': False}: false"),
        ({"export": {"language": [False]}}, r"export.language=\[False\]: false"),
    ],
)
def test_numbers_that_yaml_read_are_refused_where_text_is_wanted(values, key):
    """The digits, or the word `no`, that the file has are gone."""
    with pytest.raises(ConfigError, match=f"{key} is no text, .*; put it in quotes"):
        load_values(values)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read_config(["output_dir=~/runs", "model.path=~/model", "resume=~/runs/step_1"])
    assert config.output_dir == f"{tmp_path}/runs"
    assert config.model.path == f"{tmp_path}/model"
    assert config.resume == f"{tmp_path}/runs/step_1"


@pytest.mark.parametrize(
    "text", ["output_dir=a,b", "output_dir=[a]", "output_dir={a: 1}", 'model.path="a', "resume=a,b"]
)
def test_the_message_has_the_exact_quotes(text, tmp_path):
    """The shell takes the suggestion apart into what was meant."""
    with pytest.raises(ConfigError) as refused:
        read_config([text])
    message = str(refused.value)
    key, _, value = text.partition("=")
    (suggestion,) = shlex.split(message[message.index(f"'{key}=") :].split(" for one text")[0])
    config = read_config([suggestion])
    owner = config.model if key == "model.path" else config
    assert Path(vars(owner)[key.rpartition(".")[2]]).name == value.strip('"')


def test_numbers_keep_their_grammar():
    config = read_config(["training.learning_rate=1e-4", "num_steps=12", "dry_run=true"])
    assert (config.training.learning_rate, config.num_steps, config.dry_run) == (1e-4, 12, True)
    with pytest.raises(ConfigError, match="the value cannot be read"):
        read_config(["num_steps=3=4"])


def test_brackets_without_end_are_refused():
    with pytest.raises(ConfigError, match=r"nested too deeply|cannot be read"):
        read_config(["generation.stop=" + "[" * 5000])
    assert main(["generation.stop=" + "[" * 5000 + "]" * 5000]) == 2


def test_every_number_has_a_largest_value():
    values = {key.name: str(10**30) if key.takes(int) else "1e308" for key in NUMBERS}
    lines = refused_lines(*(f"{name}={value}" for name, value in values.items()))
    assert [line.partition("=")[0] for line in lines] == [key.name for key in NUMBERS]
    assert [
        line
        for line in lines
        if "must be at most" not in line and "less than" not in line and "one of" not in line
    ] == []


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
def test_the_default_is_far_below_the_largest_value(key):
    if key.default is not None and key.setting.maximum == largest(key.name, key.setting.unit):
        assert key.default * 10 <= key.setting.maximum


@pytest.mark.parametrize("value", ["-1", "0", "1", "2", "1e30", "0.5", str(10**30)])
def test_a_number_is_no_truth(value):
    lines = refused_lines(*(f"{key.name}={value}" for key in TRUTHS))
    assert [line.partition("=")[0] for line in lines] == [key.name for key in TRUTHS]
    assert [line for line in lines if not line.endswith("must be true or false")] == []


def test_a_truth_is_no_number():
    keys = [key for key in NUMBERS if not key.takes(bool)]
    lines = refused_lines(*(f"{key.name}=true" for key in keys))
    assert [line.partition("=")[0] for line in lines] == [key.name for key in keys]


LONG = {
    "a name of 300 characters": "n" * 300,
    "a path of 5,000 characters": "/".join(["n" * 100] * 50),
    "bytes, not characters": "ü" * 200,
}


EVERY_PATH = ["output_dir", "resume", *PATHS, "evaluation.models.a"]


def _refused_paths(value: str, words: str, keys: list[str] = EVERY_PATH) -> None:
    """Every key with a path refuses this one, in a short sentence."""
    lines = refused_lines(*(f"{key}={value}" for key in keys))
    assert sorted(line.partition("=")[0] for line in lines) == sorted(keys)
    assert [line for line in lines if words not in line or len(line) > 300] == []


@pytest.mark.parametrize("path", LONG.values(), ids=LONG)
def test_a_name_that_is_too_long_is_one_sentence(path):
    _refused_paths(f"/tmp/{path}", "longer than the file system allows")


def test_the_home_of_a_stranger_is_one_sentence():
    _refused_paths("~nobody9/x", "there is no user 'nobody9'")


@pytest.mark.parametrize("path", ["~nobody9/x", "/tmp/" + "n" * 300, "a\0b", "a\u202eb"])
def test_a_prepared_source_has_a_path_that_can_be(path):
    with pytest.raises(RequestError, match=r"prepare\.sources\.a\.path=") as refused:
        read_source("a", {"path": path, "kind": "text"}, group="prepare.sources")
    assert "\0" not in str(refused.value)[50:]


OBEYED = ["a\nb", "a\x1b[31mb", "a\u202eb", "a\0b", "a\x7fb", "a\rb", "a\udcffb"]


@pytest.mark.parametrize("value", OBEYED, ids=ascii)
def test_a_path_that_a_terminal_would_obey_is_refused(value):
    _refused_paths(value, "which cannot be shown", EVERY_PATH[:-1])
    with pytest.raises(ConfigError, match=r"evaluation\.models\.a=(.|\s)*which cannot be shown"):
        read_config([f"evaluation.models.a={value}"])


@pytest.mark.parametrize(
    "key",
    ["reward.url", "chat.url", "chat.compare_url", "serve.host", "serve.token_variable"],
)
def test_an_address_with_a_line_break_is_refused(key):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}=(.|\s)*which cannot be shown"):
        read_config([f"{key}=http://h/\r\nX: y"])


def test_prose_may_have_lines():
    config = read_config(['data.system_prompt="a\nb"', "chat.system='a\nb'"])
    assert (config.data.system_prompt, config.chat.system) == ("a\nb", "a\nb")


def test_the_screen_gets_no_control_characters():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_ray.main", "recipe=demo", "output_dir=a\x1b[31m\u202eb"],
        capture_output=True,
        cwd=Path(__file__).parents[3],
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr
    assert "\u202e".encode() not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_plan_of_too_many_workers_is_refused():
    with pytest.raises(ConfigError, match=r"reward\.num_workers=1000000.*at most 16384"):
        load_config(["recipe=demo", "stage=plan", "reward.num_workers=1000000"])
