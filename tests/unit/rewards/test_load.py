"""Entries of `reward.functions`: reading, search without an import, loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.config.reward_entries import read_functions
from rlhf_ray.rewards import RewardSample
from rlhf_ray.rewards.load import check_functions, load_reward, with_absolute_paths

SAMPLE = RewardSample(
    prompt_id="e0-r0",
    sample_index=0,
    prompt="",
    response="abcd",
    answer=None,
    source="",
    columns={},
    finish_reason="stop",
)


def test_defaults_of_an_entry() -> None:
    entries = read_functions(
        [
            "exact_match",
            "package.module:score",
            "folder/rewards.py:Judge",
            {"path": "length", "name": "short", "weight": -2, "arguments": {"limit": 5}},
        ]
    )
    assert [(e.path, e.name, e.weight, e.arguments) for e in entries] == [
        ("exact_match", "exact_match", 1.0, {}),
        ("package.module:score", "score", 1.0, {}),
        ("folder/rewards.py:Judge", "Judge", 1.0, {}),
        ("length", "short", -2.0, {"limit": 5}),
    ]
    assert read_functions(entries) == entries


WRONG_ENTRIES = [
    ([], "reward.functions is empty; name a built-in"),
    (["exact_mach"], r"functions\[0\]: there is no built-in reward 'exact_mach', did you mean "
     "'exact_match'"),
    (["a/b.py:"], "names no function: '' after the colon is not a name"),
    (["a/b.txt:f"], "'a/b.txt' in 'a/b.txt:f' is neither a module nor a .py file"),
    ([7], r"functions\[0\] is 7; name a built-in"),
    ([{"name": "x"}], r"functions\[0\]\.path is None"),
    ([{"path": "length", "wieght": 2}], "unknown key 'wieght', did you mean 'weight'"),
    ([{"path": "length", "limit": 2}], "arguments of the function go under `arguments`"),
    ([{"path": "length", "weight": float("nan")}], "weight is nan; it must be a finite number"),
    ([{"path": "length", "weight": True}], "weight is True"),
    ([{"path": "length", "weight": "1"}], "weight is '1'"),
    ([{"path": "length", "name": "a b"}], "name is 'a b'; it becomes the metric reward/<name>"),
    ([{"path": "length", "name": "mean"}], "reward/mean is the metric of the whole reward"),
    ([{"path": "length", "arguments": [1]}], r"arguments is \[1\]; it must be a mapping"),
    (["length", "length"], r"functions\[0\] and \[1\] are both named 'length'"),
    ([{"path": "length", "weight": 0}], "every reward would be 0"),
]  # fmt: skip


def test_a_path_of_an_earlier_release_names_the_new_one() -> None:
    old, new = (f"rlhf_ray.{folder}.sentiment:has_the_mood" for folder in ("tasks", "recipes"))
    with pytest.raises(RequestError) as caught:
        check_functions([old])
    assert str(caught.value) == f"reward.functions[0]: {old!r} has moved; write {new!r}"
    check_functions([new])


@pytest.mark.parametrize(("functions", "message"), WRONG_ENTRIES)
def test_wrong_entries_are_refused(functions: list, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_functions(functions)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{file}:leters", "defines no 'leters', did you mean 'letters'"),
        ("{file}:later", "is an async function"),
        ("{file}x.py:letters", "pyx.py does not exist, did you mean 'user_rewards.py'"),
        ("no_such_package.rewards:f", "there is no module 'no_such_package' in this environment"),
        ("rlhf_ray.rewards.no_such:f", "there is no module 'rlhf_ray.rewards.no_such'"),
        ("rlhf_ray.config.reward_entries:read_function", "did you mean 'read_functions'"),
        ({"path": "{file}:letters", "arguments": {"skale": 2}}, "no argument 'skale', did you mean "
         "'scale'; its arguments are: scale"),
        ("{file}:Prefix", "needs the argument 'text'"),
        ("regular_expression", "needs the argument 'pattern'"),
        ({"path": "length", "arguments": {"limt": 2}}, "no argument 'limt', did you mean 'limit'"),
        ({"path": "length", "arguments": {"limit": 0}}, "limit is 0; it must be a whole number"),
        ("{folder}/broken.py:f", r"broken.py, line 2, is not Python"),
        ("{folder}/foreign.py:verl", r"parameters of verl's.*def score\(sample\): return verl\("
         r"data_source=sample.source, solution_str=sample.response, ground_truth=sample.answer, "
         r"extra_info=sample.columns\)$"),
        ("{folder}/foreign.py:trl", r"parameters of TRL's.*return trl\(prompts=\[sample.prompt\], "
         r"completions=\[sample.response\], level=\[sample.columns\['level'\]\]\)\[0\]$"),
        ("{folder}/foreign.py:short", r"return short\(completions=\[sample.response\]\)\[0\]$"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_refused_before_anything_is_imported(
    entry: str | dict, message: str, user_rewards: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "foreign.py").write_text(
        "def verl(data_source, solution_str, ground_truth, extra_info=None): ...\n"
        "def trl(prompts, completions, level, **kwargs): ...\n"
        "def short(completions, **kwargs): ...\n"
    )

    def fill(text: str) -> str:
        return text.format(file=user_rewards, folder=tmp_path)

    entry = fill(entry) if isinstance(entry, str) else {**entry, "path": fill(entry["path"])}
    with pytest.raises(RequestError, match=message):
        check_functions([entry])


def test_the_check_runs_no_user_code(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "raise RuntimeError('imported')\n"
        "try:\n    from fast import score\nexcept ImportError:\n    def score(sample): return 0\n"
        "a, (b, c) = 1, (2, 3)\n"
    )
    for name in ("score", "b", "c"):
        check_functions([f"{file}:{name}"])
    with pytest.raises(RequestError, match="defines no 'd'"):
        check_functions([f"{file}:d"])
    with pytest.raises(RequestError, match="cannot be imported: RuntimeError: imported"):
        load_reward(check_functions([f"{file}:score"])[0])


@pytest.mark.parametrize(
    "source",
    [
        "from somewhere import *\n",
        "def __getattr__(name): return len\n",
        "@decorate\ndef f(sample): ...\n",
        "class f(Base): ...\n",
        "def f(sample, **options): ...\n",
    ],
)
def test_the_check_accepts_what_the_source_does_not_show(source: str, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(source)
    check_functions([{"path": f"{tmp_path}/r.py:f", "arguments": {"anything": 1}}])


def test_a_function_with_arguments_and_a_class(user_rewards: str) -> None:
    function, instance = (
        load_reward(entry)
        for entry in read_functions(
            [
                {"path": f"{user_rewards}:letters", "arguments": {"scale": 0.5}, "weight": 3},
                {"path": f"{user_rewards}:Prefix", "arguments": {"text": "ab"}},
            ]
        )
    )
    assert (function.name, function.weight, function.function(SAMPLE)) == ("letters", 3.0, 2.0)
    assert instance.function(SAMPLE) == 1.0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "{file}:Refuses", "arguments": {"size": 9}}, "ValueError: size 9 is too large"),
        ({"path": "{file}:CONSTANT"}, "is a int; name a function, or a class"),
        ({"path": "pathlib:Path"}, "cannot be called; give the class a method __call__"),
        ({"path": "{file}:nothing"}, "defines no 'nothing'"),
    ],
)
def test_what_cannot_be_loaded_is_refused(entry: dict, message: str, user_rewards: str) -> None:
    entry = {**entry, "path": entry["path"].format(file=user_rewards)}
    with pytest.raises(RequestError, match=message):
        load_reward(read_functions([entry])[0])


def test_files_get_absolute_paths(monkeypatch: pytest.MonkeyPatch, user_rewards: str) -> None:
    monkeypatch.chdir(Path(user_rewards).parent)
    reward = with_absolute_paths(
        RewardConfig(functions=["exact_match", "user_rewards.py:letters"], timeout_s=3)
    )
    assert [entry["path"] for entry in reward.functions] == [
        "exact_match",
        f"{user_rewards}:letters",
    ]
    assert reward.timeout_s == 3


def test_paths_for_the_sandbox_exist_and_become_absolute(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    reward = RewardConfig(functions=["exact_match"], sandbox_read=["data"])
    assert with_absolute_paths(reward).sandbox_read == [str(tmp_path / "data")]
    with pytest.raises(RequestError, match=r"reward\.sandbox_read: .*/gone does not exist"):
        with_absolute_paths(RewardConfig(functions=["exact_match"], sandbox_read=["gone"]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys\nsys.exit(3)\n", r"cannot be imported: SystemExit: 3 \(.*/r.py, line 2\)"),
        ("def g():\n    1 / 0\ng()\n", r"ZeroDivisionError: division by zero \(.*/r.py, line 2"),
        ("raise KeyboardInterrupt\n", r"cannot be imported: KeyboardInterrupt:  \(.*, line 1\)"),
        ("import no_such_thing\n", r"No module named 'no_such_thing' \(.*/r.py, line 1\)"),
        ("class f:\n    def __init__(self):\n        exit(2)\n", r"SystemExit: 2"),
    ],
)
def test_a_module_that_fails_or_exits_is_refused_with_its_line(
    source: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "r.py").write_text(source)
    with pytest.raises(RequestError, match=message):
        load_reward(read_functions([f"{tmp_path}/r.py:f"])[0])


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_rewards.py").write_text("VALUE = 4\n")
    file = tmp_path / "rewards.py"
    file.write_text("import neighbour_of_rewards\ndef f(s): return neighbour_of_rewards.VALUE\n")
    reward = load_reward(read_functions([f"{file}:f"])[0])
    assert reward.function(SAMPLE) == 4


def test_neither_reading_nor_the_child_loads_heavy_libraries() -> None:
    code = (
        "import sys, rlhf_ray.rewards.functions.runner, rlhf_ray.rewards.load\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"
