"""stage=plan: a page of what matters, and what no one has looked at."""

from __future__ import annotations

import pytest
import yaml

from rlhf_ray.main import main

pytestmark = pytest.mark.unit_slow
MOST_LINES = 110
ROWS = "examples.path=rlhf_ray.data.builtin:arithmetic"


@pytest.fixture(autouse=True)
def _no_hub(tmp_path_factory, monkeypatch):
    """Plans here know no model of the hub, whatever is in a cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def plan(capsys, *arguments: str, status: int = 0) -> str:
    assert main(list(arguments)) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["demo", "demo_ppo", "gpu_7b", "gpu_70b"])
def test_it_fits_on_a_page(capsys, recipe):
    out = plan(capsys, f"recipe={recipe}", "stage=plan")
    assert len(out.splitlines()) <= MOST_LINES
    for title in ("# Configuration: ", "# Batch", "# Placement: ", "# Disk"):
        assert title in out


def test_the_configuration_is_what_differs_from_the_defaults(capsys):
    out = plan(capsys, "recipe=demo", "stage=plan", "seed=7", "generation.temperature=1.0")
    head, _, rest = out.partition("\n")
    shown = yaml.safe_load(rest.partition("\n# Batch")[0])
    assert shown["seed"] == 7
    assert shown["training"]["learning_rate"] == 2e-4
    assert "temperature" not in shown["generation"], "it has its default"
    assert "fit" not in shown
    count, others, *_ = (int(word) for word in head.split() if word.isdigit())
    assert count < 40 < 300 < others
    assert "--cfg job prints all" in head


def test_models_on_the_hub_are_said_to_be_unchecked(capsys):
    out = plan(capsys, "stage=sft", "model.path=owner/name", ROWS, "dry_run=true")
    line = "not checked: model.path=owner/name is read from the hub when the run starts"
    assert out.splitlines()[-1] == line
    stages = "pipeline.stages.a={stage: sft, model.path: owner/name, examples.path: owner/rows}"
    assert "not checked: pipeline.stages.a.model.path=owner/name" in plan(
        capsys, "stage=pipeline", stages, "dry_run=true"
    )
    assert "not checked" not in plan(capsys, "recipe=demo", "stage=plan")


def test_data_sets_on_the_hub_are_said_to_be_unchecked(capsys):
    rows = ("examples.path=owner/rows", "examples.eval_split=test", "dry_run=true")
    out = plan(capsys, "stage=sft", "model.path=builtin:arithmetic", *rows)
    line = "not checked: examples.path=owner/rows is read from the hub when the run starts"
    assert out.splitlines().count(line) == 1
    out = plan(capsys, "recipe=demo", "stage=plan", "data.path=owner/rows:easy")
    assert "not checked: data.path=owner/rows:easy is read from the hub" in out
    stages = "pipeline.stages.a={stage: sft, model.path: builtin:stories, examples.path: owner/r}"
    out = plan(capsys, "stage=pipeline", stages, "dry_run=true")
    assert "not checked: pipeline.stages.a.examples.path=owner/r is read" in out
    source = "prepare.sources.own={path: owner/rows, kind: prompt}"
    out = plan(capsys, "stage=prepare_data", source, "dry_run=true")
    assert "not checked: prepare.sources.own.path=owner/rows is read from the hub" in out


def test_a_hub_name_that_may_be_a_path_is_said(capsys, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    names = ("model.path=models/smal", "model.tokenizer_path=owner/name", "dry_run=true")
    out = plan(capsys, "stage=sft", ROWS, *names)
    assert "model.path=models/smal is read from the hub when the run starts (there is a" in out
    assert "folder models here, and no smal in it)" in out
    assert "not checked: model.tokenizer_path=owner/name is read from the hub" in out


def test_a_misspelt_folder_of_rows_is_refused(capsys, tmp_path, monkeypatch):
    (tmp_path / "rows" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    sft = ("stage=sft", "model.path=builtin:arithmetic", "dry_run=true")
    assert main([*sft, "examples.path=row/sft"]) == 2
    assert "no such file or folder (did you mean rows/sft?), and" in capsys.readouterr().err
    assert main([*sft, "examples.path=rows/stf"]) == 2
    assert "examples.path is 'rows/stf': no such file or folder" in capsys.readouterr().err
    plan(capsys, *sft, "examples.path=owner/sft")


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipe=demo", "stage=plan"),
        ("stage=sft", ROWS, "model.path=builtin:arithmetic", "dry_run=true"),
        ("recipe=pipeline_demo", "dry_run=true"),
        (
            "stage=prepare_data",
            f"prepare.sources.a={{path: {ROWS[14:]}, kind: prompt}}",
            "dry_run=true",
        ),
    ],
)
def test_an_output_folder_that_is_a_file_is_refused(capsys, tmp_path, arguments):
    (tmp_path / "file").touch()
    assert main([*arguments, f"output_dir={tmp_path}/file"]) == 2
    assert f"output_dir is '{tmp_path}/file': it is a file; name a folder" in (
        capsys.readouterr().err
    )
    assert main([*arguments, f"output_dir={tmp_path}/file/run"]) == 2
    assert "file is a file; name a folder" in capsys.readouterr().err
    plan(capsys, *arguments, f"output_dir={tmp_path}/new/run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_files_of_a_folder_are_named(capsys, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    said = "split 'train', 1 jsonl files are read: train.jsonl; 1 are left out: dev.jsonl"
    model = ("model.path=builtin:arithmetic", "dry_run=true")
    out = plan(capsys, "stage=sft", f"examples.path={tmp_path}", *model)
    assert f"examples.path is a folder: {said}" in out
    source = f"prepare.sources.own={{path: {tmp_path}, kind: prompt}}"
    out = plan(capsys, "stage=prepare_data", source, "dry_run=true")
    assert f"prepare.sources.own.path is a folder: {said}" in out
    (tmp_path / "more.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    assert main(["stage=sft", f"examples.path={tmp_path}", *model]) == 2
    assert "others are not (more.jsonl)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("recipe=demo", "stage=plan"), "model.path"),
        (("recipe=demo_ppo", "stage=plan"), "critic.path"),
        (("stage=sft", ROWS, "dry_run=true"), "model.path"),
        (("stage=serve", "dry_run=true"), "model.path"),
        (("stage=evaluate", "recipe=demo", "dry_run=true"), "evaluation.models.a"),
        (("stage=serve_reward", "dry_run=true"), "reward.model.path"),
        (("stage=chat", "chat.url=http://h/v1", "dry_run=true"), "chat.compare_path"),
        (("recipe=demo", "stage=plan", "reward.judge.rubric=null"), "reward.judge.model"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(capsys, tmp_path, arguments, key):
    (tmp_path / "notes.txt").write_text("no model")
    assert main([*arguments, f"{key}={tmp_path}"]) == 2
    assert f"{key} is '{tmp_path}', a folder without config.json; it holds ['notes.txt']" in (
        capsys.readouterr().err
    )


def test_an_adapter_may_be_exported_and_no_more(capsys, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    plan(capsys, "stage=export", "export.licence=mit", f"model.path={tmp_path}", "dry_run=true")
    assert main(["stage=serve", f"model.path={tmp_path}", "dry_run=true"]) == 2
    assert "an adapter without its base model" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_there_is_refused(capsys):
    missing = "model.tokenizer_path=./nowhere/tokenizer"
    assert main(["recipe=demo", "stage=plan", missing]) == 2
    assert "model.tokenizer_path is './nowhere/tokenizer': there is no" in capsys.readouterr().err


def test_a_folder_without_weights_or_tokenizer_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    told = ["recipe=demo", f"model.path={tmp_path}"]
    for more in (["stage=plan"], ["dry_run=true"], []):
        assert main([*told, *more, f"output_dir={tmp_path}/out"]) == 2
        said = capsys.readouterr().err
        assert f"model.path is '{tmp_path}', a folder without weights: none of" in said
        assert f"model.path is '{tmp_path}', a folder without a tokenizer: none of" in said
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    plan(capsys, *told, "stage=plan")


def test_values_of_parts_that_are_not_started_are_left_out(capsys):
    told = ["recipe=demo", "stage=plan", "critic.learning_rate=1e-3", "texts.max_tokens=9"]
    head, _, rest = plan(capsys, *told).partition("\n")
    shown = yaml.safe_load(rest.partition("\n# Batch")[0])
    assert not {"critic", "texts"} & set(shown)
    assert "are of parts that this run does not start" in head
    head, _, rest = plan(capsys, *told, "algorithm=ppo").partition("\n")
    assert yaml.safe_load(rest.partition("\n# Batch")[0])["critic"]["learning_rate"] == 1e-3


def test_sizes_that_are_not_compared_say_what_to_do(capsys):
    out = plan(capsys, "recipe=gpu_7b", "stage=plan", "placement.gpu_memory_gib=79")
    words = "is not on this machine; for its sizes name a folder with its config.json, which is"
    assert out.count(words) == 2
