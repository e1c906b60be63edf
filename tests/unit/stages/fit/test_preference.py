"""What preference training refuses before a worker starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples.sets import few_rows
from rlhf_ray.models.tiny.tokenizer import train_tokenizer
from rlhf_ray.stages.fit.preference_rows import load_comparable_feedback, rankings_within

TOKENIZER = train_tokenizer(("What is it?",), vocab_size=320)


def examples(folder: Path, *rows: dict[str, Any]) -> ExamplesConfig:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return ExamplesConfig(path=str(path), eval_share=0.0)


def test_a_ranking_that_no_forward_pass_holds(tmp_path: Path) -> None:
    config = examples(
        tmp_path,
        {"prompt": "a?", "ranking": ["1", "2", "3"]},
        {"prompt": "b?", "ranking": ["1", "a long answer"]},
    )
    rankings = rankings_within(1000)(config, TOKENIZER, seed=0).train
    longest = max(len(answer.token_ids) for row in rankings for answer in row.answers)
    rankings_within(3 * longest)(config, TOKENIZER, seed=0)
    budget = 3 * longest - 1
    with pytest.raises(RequestError, match=f"={budget}: .*3 times {longest} .*{3 * longest}"):
        rankings_within(budget)(config, TOKENIZER, seed=0)


def test_feedback_on_one_prompt_is_compared_with_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "answer": answer, "good": answer == "1"}
        for prompt in ("a?", "b?")
        for answer in ("1", "2")
    ]
    load_comparable_feedback(examples(tmp_path, *rows), TOKENIZER, seed=0)
    with pytest.raises(RequestError, match=r"learnt from has one prompt.*examples\.eval_share"):
        load_comparable_feedback(examples(tmp_path, *rows[:2]), TOKENIZER, seed=0)


@pytest.mark.parametrize(
    ("is_good", "words"),
    [
        (True, "all 2 answers .* are good; add bad ones, or learn these answers with stage=sft"),
        (False, "all 2 answers .* are bad; add good ones$"),
    ],
)
def test_feedback_of_one_kind(tmp_path: Path, is_good: bool, words: str) -> None:
    rows = [{"prompt": prompt, "answer": "1", "good": is_good} for prompt in ("a?", "b?")]
    with pytest.raises(RequestError, match=words):
        load_comparable_feedback(examples(tmp_path, *rows), TOKENIZER, seed=0)


def test_few_held_out_rows_are_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "answer": "1", "good": n % 2 == 0} for n in range(60)]
    config = examples(tmp_path, *rows)
    for count, is_few in ((3, True), (29, True), (30, False)):
        (tmp_path / "held_out.jsonl").write_text("\n".join(json.dumps(r) for r in rows[:count]))
        settings = dataclasses.replace(config, eval_path=str(tmp_path / "held_out.jsonl"))
        told = load_comparable_feedback(settings, TOKENIZER, seed=0).describe()
        assert (f"few held-out rows: a share of {count}, such as an accuracy" in told) == is_few
    assert "changes by 33% with a single row" in few_rows(3)
