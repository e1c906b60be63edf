"""One message for all that a request, or the stages of a pipeline, lack."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.stages.pipeline import STAGE as PIPELINE
from rlhf_ray.stages.request_checks import check_request

pytestmark = pytest.mark.unit_slow


def test_all_that_the_stages_of_a_pipeline_miss_is_said_at_once(tmp_path):
    none, texts = str(tmp_path / "none"), tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a"}\n')
    stages = [
        f"pipeline.stages.data={{stage: prepare_data, prepare: {{sources: {{a: {{path: "
        f"'{none}_a.txt'}}, b: {{path: '{none}_b.txt'}}}}}}}}",
        f"pipeline.stages.base={{stage: pretrain, model.path: '{none}/model', examples.path: "
        f"'{none}.jsonl'}}",
        f"pipeline.stages.tuned={{stage: sft, model.path: '{{base}}/model', examples.path: "
        f"'{texts}'}}",
        f"pipeline.stages.rl={{recipe: demo, stage: rl, model.path: '{{tuned}}/model', data.path: "
        f"'{none}_prompts.jsonl', reward.functions: ['{none}.py:f']}}",
    ]
    told = ["stage=pipeline", f"output_dir={tmp_path}/out", *stages, "pipeline.report.a=tuned:los"]
    with pytest.raises(RequestError) as refused:
        PIPELINE.check(load_config(told))
    title, *lines = str(refused.value).split("\n  - ")
    assert title == "8 things of the request are wrong:"
    begins = (
        "pipeline.report.a=tuned:los: ",
        f"pipeline.stages.data: prepare.sources.a.path is '{none}_a.txt'",
        f"pipeline.stages.data: prepare.sources.b.path is '{none}_b.txt'",
        f"pipeline.stages.base: model.path is '{none}/model'",
        f"pipeline.stages.base: examples.path is '{none}.jsonl'",
        "pipeline.stages.tuned: examples.path: ",
        f"pipeline.stages.rl: reward 'f': the file {none}.py",
        f"pipeline.stages.rl: data.path is '{none}_prompts.jsonl'",
    )
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == [*begins]
    assert not (tmp_path / "out").exists()


def test_one_request_says_all_that_it_misses(tmp_path):
    none = str(tmp_path / "none")
    config = load_config(["recipe=demo", f"model.path={none}/model", f"data.path={none}.jsonl"])
    with pytest.raises(RequestError, match=r"^2 things of the request are wrong:\n  - model\.path"):
        check_request(config)


@pytest.mark.parametrize("stage", ["serve", "sft"])
def test_a_chat_template_may_be_named(stage, tmp_path):
    """As in the run, which finds the name among the templates of the tokenizer."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    told = [f"stage={stage}", f"model.path={folder}"]
    told += [f"examples.path={rows}"] if stage == "sft" else []
    check_request(load_config([*told, "model.chat_template=rag"]))
    with pytest.raises(RequestError, match=r"model\.chat_template is 'rug'.*templates are 'rag'$"):
        check_request(load_config([*told, "model.chat_template=rug"]))
    elsewhere = [told[0], "model.path=owner/name", *told[2:]]
    check_request(load_config([*elsewhere, "model.chat_template=rug"]))
