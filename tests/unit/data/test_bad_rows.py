"""Rows that cannot be read, rendered or tokenised, over every loader of prompts and examples."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.data.examples import load_demonstrations, load_feedback, load_rankings, load_texts
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.data.rows import DataError

BAD = "BAD"
FIT = {
    "chat": load_demonstrations,
    "demonstration": load_demonstrations,
    "ranking": load_rankings,
    "feedback": load_feedback,
    "text": load_texts,
    "separate text": load_texts,
}
LOADERS = ("prompt", *FIT)
WITH_TEMPLATE = tuple(name for name in LOADERS if "text" not in name)


def row(kind: str, text: str) -> dict[str, Any]:
    """A row whose prompt is `text`."""
    chat = [{"role": "user", "content": text}]
    return {
        "prompt": {"prompt": text},
        "chat": {"messages": [*chat, {"role": "assistant", "content": "yes"}]},
        "demonstration": {"prompt": text, "answer": "yes"},
        "ranking": {"prompt": text, "chosen": "yes", "rejected": "no"},
        "feedback": {"prompt": text, "answer": "yes", "good": True},
        "text": {"text": text},
        "separate text": {"text": text},
    }[kind]


@pytest.fixture
def own_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """One that a test may change."""
    return AutoTokenizer.from_pretrained(tokenizer.name_or_path)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def load(kind: str, lines: list[Any], tokenizer: Any, **settings: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text(
            "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
        )
        if kind == "prompt":
            return load_prompts(DataConfig(path=str(path), **settings), tokenizer, seed=0)
        config = ExamplesConfig(path=str(path), eval_share=0, pack_texts=kind == "text", **settings)
        return FIT[kind](config, tokenizer, seed=0)

    return load


def size(found: Any) -> int:
    return len(found.prompts) if "prompts" in type(found).__slots__ else len(found.train)


def skipped(found: Any) -> dict[str, int]:
    return {part.reason: part.count for part in found.skipped}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "hi \\ud83d", "text": "\\ud83d"}', "half of a surrogate pair"),
        ('{"prompt": ' + "9" * 5000 + "}", "more than 4300 digits"),
        ("[" * 100_000, "nested deeper"),
        ('{"prompt": "a", "prompt": "b"}', "twice"),
    ],
)
def test_a_line_that_cannot_be_read(
    load: Callable[..., Any], tokenizer: Any, kind: str, line: str, words: str
) -> None:
    lines = [row(kind, "one"), line, row(kind, "two")]
    with pytest.raises(DataError, match=rf"rows\.jsonl line 2: .*{words}.*on_bad_row=skip"):
        load(kind, lines, tokenizer)
    assert skipped(load(kind, lines, tokenizer, on_bad_row="skip")) == {"broken row": 1}


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("{{ 1 + 'a' }}", "fails on the messages: TypeError"),
        ("{{ {}['x'].y }}", "refuses the messages"),
        ("{{ 'x' | int(base=99) + messages[99999].x.y }}", "the chat template"),
        ("{{ raise_exception('no') }}", "refuses the messages: no"),
    ],
)
def test_an_error_of_the_template(
    load: Callable[..., Any], own_tokenizer: Any, kind: str, code: str, words: str
) -> None:
    template = own_tokenizer.chat_template
    own_tokenizer.chat_template = (
        f"{{% if messages[0]['content'] == '{BAD}' %}}{code}{{% endif %}}{template}"
    )
    lines = [row(kind, "one"), row(kind, BAD), row(kind, "two")]
    with pytest.raises(DataError, match=rf"rows\.jsonl line 2: .*{words}.*on_bad_row=skip"):
        load(kind, lines, own_tokenizer)
    found = load(kind, lines, own_tokenizer, on_bad_row="skip")
    assert (size(found), skipped(found)) == (2, {"invalid row": 1})


class PanicException(BaseException):
    """Stands for the panic of the tokenizers library, which is no `Exception`."""


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("raised", [TypeError, OverflowError, PanicException])
def test_an_error_of_the_tokenizer(
    load: Callable[..., Any],
    own_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    raised: type[BaseException],
) -> None:
    call = type(own_tokenizer).__call__

    def refusing(self: Any, texts: Any, **settings: Any) -> Any:
        if any(BAD in text for text in texts):
            raise raised("cannot")
        return call(self, texts, **settings)

    monkeypatch.setattr(type(own_tokenizer), "__call__", refusing)
    lines = [row(kind, "one"), row(kind, BAD), row(kind, "two")]
    words = rf"rows\.jsonl line 2: the tokenizer cannot read the text: {raised.__name__}: cannot"
    with pytest.raises(DataError, match=words):
        load(kind, lines, own_tokenizer)
    found = load(kind, lines, own_tokenizer, on_bad_row="skip")
    assert skipped(found) == {"invalid row": 1}
    assert size(found) == (1 if kind == "text" else 2)


def test_an_interrupt_is_no_bad_row(
    load: Callable[..., Any], own_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, texts: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(own_tokenizer), "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("prompt", [row("prompt", "one")], own_tokenizer, on_bad_row="skip")


@pytest.mark.unit_slow
@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind != "text"])
def test_megabytes_are_too_long_without_being_tokenised(
    load: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    """The whole tokenised would take more than a minute."""
    limit = "max_prompt_tokens" if kind == "prompt" else "max_tokens"
    on_long = "on_long_prompt" if kind == "prompt" else "on_long"
    lines = [row(kind, "one"), row(kind, "word " * 2_000_000)]
    started = time.process_time()
    found = load(kind, lines, tokenizer, **{limit: 64, on_long: "skip"})
    with pytest.raises(DataError, match=r"line 2: .*has 100000\d\d* characters"):
        load(kind, lines, tokenizer, **{limit: 64, on_long: "error"})
    assert time.process_time() - started < 10
    assert (size(found), sum(skipped(found).values())) == (1, 1)


@pytest.mark.unit_slow
@pytest.mark.parametrize("kind", ["chat", "demonstration", "ranking", "separate text"])
def test_megabytes_are_cut_as_a_shorter_text_is(
    load: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    """To the same tokens, and counted alike; a prompt of megabytes leaves nothing to learn."""

    def tokens(words: int) -> Any:
        if kind in ("separate text",):
            lines = [row(kind, "word " * words)]
        elif kind == "chat":
            answer = {"role": "assistant", "content": "word " * words}
            lines = [{"messages": [{"role": "user", "content": "q"}, answer]}]
        else:
            long = "word " * words
            lines = [{"prompt": "q", "answer": long, "chosen": long, "rejected": f"no {long}"}]
        found = load(kind, lines, tokenizer, max_tokens=64)
        assert found.num_cut == 1
        return found.fingerprint

    assert tokens(200_000) == tokens(200)
    if kind != "separate text":
        found = load(kind, [row(kind, "one"), row(kind, "word " * 200_000)], tokenizer)
        assert skipped(found) == {"cut down to nothing to learn": 1}


@pytest.mark.parametrize("kind", LOADERS)
def test_texts_of_special_tokens(load: Callable[..., Any], tokenizer: Any, kind: str) -> None:
    end = tokenizer.eos_token
    lines = [row(kind, "one"), row(kind, f"two{end}"), row(kind, f"three{end}")]
    told = load(kind, lines, tokenizer).describe()
    assert f"which it becomes: 2 rows (first: rows.jsonl line 2: '{end}')" in told
    with pytest.raises(DataError, match=rf"line 2: the text '{end}' is that of a special token"):
        load(kind, lines, tokenizer, on_special_text="refuse")
    found = load(kind, lines, tokenizer, on_special_text="refuse", on_bad_row="skip")
    assert skipped(found) == {"invalid row": 2}
    assert "special token, which it becomes" not in found.describe()


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_named_templates(load: Callable[..., Any], own_tokenizer: Any, kind: str) -> None:
    lines = [row(kind, "one")]
    alone = load(kind, lines, own_tokenizer).fingerprint
    template = own_tokenizer.chat_template
    own_tokenizer.chat_template = {"rag": template, "tool_use": "x"}
    words = "the chat templates 'rag', 'tool_use', and none is the default; .*model.chat_template"
    with pytest.raises(DataError, match=words):
        load(kind, lines, own_tokenizer, on_bad_row="skip")
    own_tokenizer.chat_template = {"default": template, "tool_use": "x"}
    assert load(kind, lines, own_tokenizer).fingerprint == alone


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
@pytest.mark.parametrize("write", [json.dumps, str])
def test_a_chat_that_was_written_as_text(
    load: Callable[..., Any], tokenizer: Any, kind: str, write: Callable[[Any], str]
) -> None:
    """JSON or Python's own form, as `to_csv` writes lists."""
    text = write([{"role": "user", "content": "hi"}])
    lines = [row(kind, "one"), row(kind, text)]
    if kind == "chat":
        lines = [row(kind, "one"), {"messages": text}]
    with pytest.raises(
        DataError, match=r"line 2: column '\w+' (is a chat that was written as|must)"
    ):
        load(kind, lines, tokenizer)


@pytest.mark.parametrize(
    ("margin", "value"),
    [(0.5, 0.5), ("0.5", 0.5), ("", None), (None, None), (float("nan"), None), (10**400, "bad")],
)
@pytest.mark.parametrize("bad", [-1, "-1", "inf", "big", True, [1]])
def test_margins(
    load: Callable[..., Any], tokenizer: Any, margin: Any, value: Any, bad: Any
) -> None:
    lines = [{**row("ranking", "one"), "margin": one} for one in (0, margin, bad)]
    found = load("ranking", lines, tokenizer, on_bad_row="skip")
    margins = [ranking.margin for ranking in found.train]
    assert margins == ([0.0] if value == "bad" else [0.0, value])


@pytest.mark.parametrize("answer", ["", " ", None, float("nan"), float("inf"), True, [1]])
def test_a_reference_answer_is_text_or_a_number(
    load: Callable[..., Any], tokenizer: Any, answer: Any
) -> None:
    lines = [{"prompt": "p", "answer": 7}, {"prompt": "p", "answer": answer}]
    found = load("prompt", lines, tokenizer, answer_column="answer", on_bad_row="skip")
    assert [prompt.answer for prompt in found.prompts] == ["7"]
    with pytest.raises(DataError, match="line 2: column 'answer'"):
        load("prompt", lines, tokenizer, answer_column="answer")
