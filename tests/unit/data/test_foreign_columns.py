"""Columns by the names of other libraries: the message has the keys for those that are there."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.prepare.reading import read_samples
from rlhf_ray.data.preview import preview_examples, preview_prompts
from rlhf_ray.data.rows import DataError

CHAT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
CASES = [
    ("feedback", ("prompt", "completion", "label"), "answer_column=completion examples.label_col"),
    ("demonstrations", ("prompt", "completion"), "examples.answer_column=completion"),
    ("demonstrations", ("conversation",), "examples.messages_column=conversation"),
    ("demonstrations", ("question", "response"), "prompt_column=question examples.answer_column"),
    ("demonstrations", ("instruction", "output"), "prompt_column=instruction examples.answer_co"),
    ("demonstrations", ("instruction", "input", "output"), "prepare.sources.NAME.layout=alpaca"),
    ("demonstrations", ("conversations",), "prepare.sources.NAME.layout=sharegpt"),
    ("rankings", ("question", "chosen", "rejected"), "examples.prompt_column=question"),
    ("texts", ("content",), "examples.text_column=content"),
]


def _rows(path, columns):
    row = {name: CHAT if name.startswith("conversation") else "a" for name in columns}
    path.write_text(json.dumps(row) + "\n")
    return str(path)


@pytest.mark.parametrize(("kind", "columns", "words"), CASES)
def test_the_keys_for_the_columns_that_are_there(tmp_path, kind, columns, words):
    examples = ExamplesConfig(path=_rows(tmp_path / "rows.jsonl", columns))
    with pytest.raises(DataError) as refused:
        preview_examples(examples, kind)
    assert words in str(refused.value).rpartition(". ")[2]
    assert "There are: " in str(refused.value) or "there are: " in str(refused.value)
    keys = [one for one in str(refused.value).split() if one.startswith("examples.")]
    for key, _, value in (one.partition("=") for one in keys if "=" in one):
        setattr(examples, key.removeprefix("examples."), value)
    if "layout=" not in words:
        preview_examples(examples, kind)


def test_prompts(tmp_path):
    path = _rows(tmp_path / "rows.jsonl", ("problem", "solution"))
    with pytest.raises(DataError, match=r"data\.prompt_column=problem$"):
        preview_prompts(DataConfig(path=path))
    data = DataConfig(path=path, prompt_column="problem", answer_column="answer")
    with pytest.raises(DataError, match=r"data\.answer_column=solution$"):
        preview_prompts(data)


def test_columns_that_mean_nothing_have_no_hint(tmp_path):
    path = _rows(tmp_path / "rows.jsonl", ("a", "b"))
    with pytest.raises(DataError, match=r"there are: a, b$"):
        preview_prompts(DataConfig(path=path))


PREPARED = [
    ({"kind": "demonstration"}, ("question", "response"), "x.columns.prompt=question prepare.s"),
    ({"kind": "demonstration"}, ("chat",), "x.columns.messages=chat"),
    ({"kind": "feedback"}, ("prompt", "completion", "label"), "x.columns.good=label"),
    ({"kind": "preference"}, ("question", "chosen", "rejected"), ""),
    ({"kind": "preference"}, ("prompt", "preferred", "dispreferred"), "x.columns.chosen=preferred"),
    ({"kind": "demonstration"}, ("instruction", "input", "output"), "x.layout=alpaca, which reads"),
    ({"layout": "alpaca", "kind": "demonstration"}, ("conversations",), "x.layout=sharegpt"),
    ({"kind": "prompt", "columns": {"answer": "anser"}}, ("prompt", "answer"), "answer=answer"),
    ({"kind": "text"}, ("a", "b"), "x.columns to the names of your columns"),
]


@pytest.mark.parametrize(("settings", "columns", "words"), PREPARED)
def test_entries_of_prepare_sources(tmp_path, settings, columns, words):
    path = _rows(tmp_path / "rows.jsonl", columns)
    source = PreparedSource(key="prepare.sources.x", name="x", path=path, **settings)
    if not words:  # The column is only read where the rows need it.
        next(read_samples(source))
        return
    with pytest.raises(DataError) as refused:
        next(read_samples(source))
    assert words in str(refused.value).rpartition(". ")[2]
    if "columns" in settings:
        assert "columns.answer is 'anser'" in str(refused.value)
        assert "did you mean 'answer'" in str(refused.value)
