"""Mistakes that are refused before torch is imported, by a run and by its plan alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.data.preview import preview_examples, preview_prompts
from rlhf_ray.data.rows import DataError
from rlhf_ray.main import main
from rlhf_ray.stages.pipeline import STAGE as PIPELINE
from rlhf_ray.stages.request_checks import check_request

pytestmark = pytest.mark.unit_slow

HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "datasets")

RL = ("recipe=demo",)
SFT = ("stage=sft", "model.path=builtin:arithmetic", "examples.path={rows}")
GAE = (*RL, "algorithm=ppo")
PTX = (*RL, "algorithm.ptx_coefficient=1")
FIRST = "pipeline.stages.a={stage:sft,model.path:m,examples.path:'{none}.jsonl'}"
# Arguments, and words of the message. {name} is a file that the fixture makes, {none} is missing.
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "model": ((*RL, "model.path={none}/model"), "model.path is"),
    "built-in model": ((*RL, "model.path=builtin:arithmetik"), "did you mean builtin:arithmetic"),
    "critic": ((*GAE, "critic.path={none}/model"), "critic.path is"),
    "reward model": ((*RL, "reward.model.path={none}/model"), "reward.model.path is"),
    "data": ((*RL, "data.path={none}.jsonl"), "data.path is"),
    "column": ((*RL, "data.path={rows}", "data.prompt_column=nope"), "no such column"),
    "answers": ((*RL, "data.path={rows}", "data.answer_column=nope"), "no such column"),
    "empty data": ((*RL, "data.path={empty}"), "has no rows"),
    "broken row": ((*RL, "data.path={broken}"), "is not JSON"),
    "held-out data": ((*RL, "evaluation.every=5", "evaluation.path={none}.jsonl"), "no such file"),
    "texts": ((*RL, "algorithm.ptx_coefficient=1", "texts.path={none}.jsonl"), "texts.path is"),
    "column of texts": (
        (*RL, "algorithm.ptx_coefficient=1", "texts.path={rows}"),
        "no such column",
    ),
    "reward file": ((*RL, "reward.functions=[{none}.py:f]"), "does not exist"),
    "reward name": ((*RL, "reward.functions=[{reward}:nope]"), "defines no 'nope'"),
    "checkpoint": ((*RL, "resume={none}/step_000010"), "is no committed checkpoint"),
    "chat template": ((*RL, "model.chat_template={none}.jinja"), "model.chat_template is"),
    "examples": ((*SFT, "examples.path={none}.jsonl"), "examples.path is"),
    "held-out examples": ((*SFT, "examples.eval_path={none}.jsonl"), "examples.eval_path is"),
    "columns": ((*SFT, "examples.answer_column=nope"), "has no columns"),
    "columns of held-out": ((*SFT, "examples.eval_path={texts}"), "examples.eval_path: "),
    "checkpoint of sft": ((*SFT, "resume={none}/step_000010"), "is no committed checkpoint"),
    "texts of pretrain": (("stage=pretrain", *SFT[1:]), "has no columns 'text'"),
    "rankings": (("stage=reward_model", *SFT[1:]), "has no columns 'prompt'"),
    "pairs": (("stage=preference", *SFT[1:]), "has no columns 'prompt'"),
    "feedback": (("stage=preference", "preference.loss=kto", *SFT[1:]), "'good'"),
    "evaluated": (
        ("stage=evaluate", *RL, "evaluation.models.a={none}/model"),
        "evaluation.models.a is",
    ),
    "prompts of evaluation": (
        ("stage=evaluate", *RL, "evaluation.models.a=a/b", "evaluation.path={none}.jsonl"),
        "no such file",
    ),
    "measured demonstrations": (
        ("stage=evaluate", *RL, "evaluation.models.a=a/b", "examples.eval_path={none}.jsonl"),
        "examples.eval_path is",
    ),
    "columns of measured demonstrations": (
        ("stage=evaluate", *RL, "evaluation.models.a=a/b", "examples.eval_path={texts}"),
        "examples.eval_path: ",
    ),
    "compress": (
        ("stage=compress", *RL, "model.path={none}/model", "compress.python={rows}"),
        "model.path is",
    ),
    "Python of compress": (
        ("stage=compress", *RL, "model.path=a/b", "compress.python={none}"),
        "compress.python is",
    ),
    "prompts of compress": (
        ("stage=compress", *RL, "model.path=a/b", "data.path={none}.jsonl"),
        "data.path is",
    ),
    "export": (("stage=export", "model.path={none}/model", "export.licence=mit"), "model.path is"),
    "serve": (("stage=serve", "model.path={none}/model"), "model.path is"),
    "chat": (("stage=chat", "model.path={none}/model"), "model.path is"),
    "serve_reward": (("stage=serve_reward", "reward.model.path={none}/model"), "reward.model.path"),
    "source": (
        ("stage=prepare_data", "prepare.sources.a={path:'{none}.jsonl',kind:text}"),
        "prepare.sources.a.path is",
    ),
    "unread key": ((*SFT, "num_steps=2"), "set fit.max_steps instead"),
    "folder that is no model": ((*RL, "model.path={folder}"), "a folder without config.json"),
    "served folder": (("stage=serve", "model.path={folder}"), "a folder without config.json"),
    "folder without rows": ((*RL, "data.path={folder}"), "a folder without data files"),
    "figure of a pipeline": (
        (
            "stage=pipeline",
            "pipeline.stages.a={stage:sft,model.path:m,examples.path:a/b}",
            "pipeline.report.loss=a:los_last",
        ),
        "did you mean loss_last?",
    ),
    "a stage of a pipeline": (
        (
            "stage=pipeline",
            "pipeline.stages.a={stage:sft,model.path:m,examples.path:'{none}.jsonl'}",
        ),
        "pipeline.stages.a: examples.path is",
    ),
}
# What the run alone looks at.
PLACES: dict[str, tuple[tuple[str, ...], str]] = {
    "output_dir is a file": ((*RL, "output_dir={rows}"), "it is a file"),
    "output_dir below a file": ((*SFT, "output_dir={rows}/out"), "is a file"),
}

# Carries out one command after the other, and says which heavy libraries have come.
COMMANDS = """
import contextlib, io, json, sys
from rlhf_ray.main import main
told = []
for arguments in json.loads(sys.stdin.read()):
    with contextlib.redirect_stderr(io.StringIO()) as words:
        status = main(arguments)
    heavy = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
    told.append([status, words.getvalue(), heavy])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    contents = {
        "rows.jsonl": '{"prompt": "a", "answer": "b"}\n',
        "texts.jsonl": '{"text": "a"}\n',
        "empty.jsonl": "",
        "broken.jsonl": '{"prompt": "a", "answer": "b"}\n{"prompt": \n',
        "reward.py": "def f(sample):\n    return 1.0\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    paths = {name.partition(".")[0]: str(folder / name) for name in contents}
    (folder / "folder").mkdir()
    paths["folder"] = str(folder / "folder")
    return {**paths, "none": str(folder / "none"), "out": str(folder / "out")}


def _filled(arguments: tuple[str, ...], files: dict[str, str]) -> list[str]:
    def fill(text: str) -> str:
        for name, path in files.items():
            text = text.replace("{" + name + "}", path)
        return text

    return [f"output_dir={files['out']}", *map(fill, arguments)]


@pytest.fixture(scope="module")
def told(files) -> dict[str, tuple[int, str, list[str]]]:
    """Status, words and heavy libraries of every mistake, as a run and as a plan."""
    commands = {name: _filled(arguments, files) for name, (arguments, _) in MISTAKES.items()}
    commands |= {f"plan: {name}": [*command, "dry_run=true"] for name, command in commands.items()}
    commands |= {name: _filled(arguments, files) for name, (arguments, _) in PLACES.items()}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(HEAVY)],
        input=json.dumps(list(commands.values())),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])  # After the plans.
    return dict(zip(commands, map(tuple, answers), strict=True))


@pytest.mark.parametrize("way", ["", "plan: "])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_by_the_run_and_its_plan_without_torch(name, way, told):
    status, words, heavy = told[way + name]
    assert (status, heavy) == (2, [])
    assert words.startswith("rlhf_ray: ")
    assert MISTAKES[name][1] in words
    assert "Traceback" not in words


@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_refused_without_torch(name, told):
    status, words, heavy = told[name]
    assert (status, heavy) == (2, [])
    assert PLACES[name][1] in words


def test_a_refusal_leaves_nothing_behind(told, files):
    assert told
    assert not Path(files["out"]).exists()


def test_a_pipeline_may_name_what_it_makes_itself(files, tmp_path, capsys):
    stages = [
        f"pipeline.stages.data={{stage: prepare_data, prepare: {{sources: {{a: {{path: "
        f"'{files['texts']}', kind: text}}}}}}}}",
        "pipeline.stages.base={stage: pretrain, model.path: m, examples.path: '{data}/text.jsonl'}",
        f"pipeline.stages.tuned={{stage: sft, model.path: '{{base}}/model', examples.path: "
        f"'{files['rows']}'}}",
    ]
    told = ["stage=pipeline", f"output_dir={tmp_path}/out", *stages]
    PIPELINE.check(load_config(told))
    assert main([*told, "dry_run=true"]) == 0
    assert "tuned" in capsys.readouterr().out
    other = f"{tmp_path}/elsewhere/model"
    wrong = [text.replace("'{base}/model'", f"'{other}'") for text in told]
    with pytest.raises(RequestError, match=r"pipeline\.stages\.tuned: model\.path is"):
        PIPELINE.check(load_config(wrong))


def test_a_chat_with_an_endpoint_needs_no_model(files):
    check_request(
        load_config(["stage=chat", "chat.url=http://h/v1", f"model.path={files['none']}/m"])
    )


class TestPreview:
    """The first rows of a file, whatever its size."""

    def _data(self, path: Path, *overrides: str):
        return load_config(["recipe=demo", f"data.path={path}", *overrides]).data

    def test_a_later_line_may_have_the_column(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        lines = ['{"question": "a", "answer": "b"}'] * 500 + ['{"question": "a", "late": "b"}']
        path.write_text("\n".join(lines))
        preview_prompts(self._data(path, "data.prompt_column=question", "data.answer_column=late"))
        path.write_text("\n".join(lines[:100]))
        with pytest.raises(DataError, match="no such column"):
            preview_prompts(
                self._data(path, "data.prompt_column=question", "data.answer_column=late")
            )

    def test_a_header_has_all_columns(self, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_text("question,answer\n" + "a,b\n" * 500)
        with pytest.raises(DataError, match="no such column"):
            preview_prompts(self._data(path, "data.prompt_column=prompt"))

    def test_it_reads_no_more_than_it_needs(self, tmp_path):
        """A broken line far down is found with all the rest."""
        path = tmp_path / "rows.jsonl"
        path.write_text('{"question": "a", "answer": "b"}\n' * 5000 + "{\n")
        preview_prompts(self._data(path, "data.prompt_column=question"))

    def test_rows_that_may_be_left_out_are_no_mistake(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{\n{"question": "a", "answer": "b"}\n')
        preview_prompts(self._data(path, "data.prompt_column=question", "data.on_bad_row=skip"))

    def test_other_sources_are_not_asked(self, tmp_path):
        preview_prompts(self._data(Path("owner/name")))
        preview_prompts(self._data(Path("no.such.module:rows")))
        examples = load_config(
            ["stage=sft", "model.path=m", "examples.path=owner/name", "examples.eval_split=test"]
        ).examples
        preview_examples(examples, "demonstrations")
