"""From rows to texts that are learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.groups.data import TextsConfig
from rlhf_ray.data.ptx_texts import TOO_SHORT, TextSet, load_texts
from rlhf_ray.data.rejects import BROKEN, INVALID
from rlhf_ray.data.rows import DataError


class ByteTokenizer:
    """One token a byte, after one that begins every text."""

    BEGIN = 300
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012
    all_special_tokens = ("<end>",)
    all_special_ids = (301,)
    bos_token = cls_token = eos_token = sep_token = None

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(number for number in ids if number != self.BEGIN).decode()

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(256)}

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        if any("\x00" in text for text in texts):
            raise TypeError("no null, please")
        begin = [self.BEGIN] if add_special_tokens else []
        return {"input_ids": [[*begin, *text.encode()] for text in texts]}


@pytest.fixture
def load(tmp_path: Path):
    def load(rows: list[Any], **settings: Any) -> TextSet:
        path = tmp_path / "texts.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return load_texts(TextsConfig(path=str(path), **settings), ByteTokenizer())  # type: ignore[arg-type]

    return load


def as_text(pieces: tuple[tuple[int, ...], ...]) -> list[str]:
    return ["".join("^" if token == 300 else chr(token) for token in piece) for piece in pieces]


def test_texts_in_the_order_of_the_source(load) -> None:
    texts = load([{"text": "one"}, {"text": 22}, {"text": "three", "other": [1]}])
    assert as_text(texts.token_ids) == ["^one", "^22", "^three"]
    assert (texts.num_rows, texts.num_cut, texts.skipped) == (3, 0, ())
    words = "3 texts of 3 to 6 tokens (4 on average) from 3 rows, 0 of them longer"
    assert words in texts.describe()


def test_a_long_text_is_split_and_a_last_piece_of_one_token_left_out(load) -> None:
    rows = [{"text": "abcdefgh"}, {"text": "abcdefghi"}, {"text": "abc"}]
    texts = load(rows, max_tokens=4)
    assert as_text(texts.token_ids) == ["^abc", "defg", "^abc", "defg", "hi", "^abc"]
    assert (texts.num_rows, texts.num_cut) == (3, 2)


def test_a_long_text_is_cut_off(load) -> None:
    texts = load([{"text": "abcdefghi"}, {"text": "ab"}], max_tokens=4, on_long_text="cut")
    assert as_text(texts.token_ids) == ["^abc", "^ab"]
    assert (texts.num_rows, texts.num_cut) == (2, 1)


def test_the_tokenizer_s_own_special_tokens_and_no_chat_template(tmp_path, tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "hello there"}\n')
    (ids,) = load_texts(TextsConfig(path=str(tmp_path / "a.jsonl")), tokenizer).token_ids
    assert list(ids) == tokenizer("hello there")["input_ids"]
    assert tokenizer.chat_template is not None
    assert "user" not in tokenizer.decode(ids)


def test_the_fingerprint_is_of_the_tokens(load) -> None:
    rows = [{"text": "abcdef"}, {"text": "gh"}]
    same = load(rows).fingerprint
    assert load([*rows]).fingerprint == same
    others = [load(rows[::-1]), load(rows, max_tokens=4), load(rows, limit=1)]
    assert same not in {other.fingerprint for other in others}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": None}, "texts.jsonl line 2: column 'text' must be text or a number"),
        ({"txt": "x"}, "line 2: the row has no column 'text'"),
        ({"text": " \n"}, "line 2: column 'text' is empty"),
        ('{"text": ', "line 2: is not JSON"),
    ],
)
def test_bad_rows_end_the_run_or_are_counted(load, row: Any, problem: str) -> None:
    rows = [{"text": "good"}, row, {"text": "too"}]
    with pytest.raises(DataError, match=problem) as caught:
        load(rows)
    assert "texts.on_bad_row=skip leaves such rows out" in str(caught.value)
    texts = load(rows, on_bad_row="skip")
    assert as_text(texts.token_ids) == ["^good", "^too"]
    (skipped,) = texts.skipped
    assert skipped.count == 1
    assert skipped.reason == (BROKEN if isinstance(row, str) else INVALID)
    assert f"skipped, {skipped.reason}: 1 (first: texts.jsonl line 2" in texts.describe()


def test_one_token_predicts_nothing(tmp_path: Path) -> None:
    class NoBeginning(ByteTokenizer):
        def __call__(
            self, texts: list[str], *, add_special_tokens: bool
        ) -> dict[str, list[list[int]]]:
            del add_special_tokens
            return {"input_ids": [list(text.encode()) for text in texts]}

    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "ab"}\n')
    texts = load_texts(TextsConfig(path=str(path)), NoBeginning())  # type: ignore[arg-type]
    assert texts.token_ids == ((97, 98),)
    assert [(s.reason, s.count) for s in texts.skipped] == [(TOO_SHORT, 1)]
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"no text of .* is left: 1 skipped as text of one token"):
        load_texts(TextsConfig(path=str(path)), NoBeginning())  # type: ignore[arg-type]


def test_nothing_there(load) -> None:
    with pytest.raises(DataError, match=r"texts\.jsonl has no rows"):
        load([])
    with pytest.raises(DataError, match=r"texts\.text_column is 'body'.*there are: text"):
        load([{"text": "x"}], text_column="body")


def test_a_text_that_the_tokenizer_refuses_is_a_bad_row(load) -> None:
    rows = [{"text": "fine"}, {"text": "\x00"}, {"text": "fine"}]
    words = r"line 2: the tokenizer cannot read the text: TypeError: no null, please"
    with pytest.raises(DataError, match=words):
        load(rows)
    texts = load(rows, on_bad_row="skip")
    assert as_text(texts.token_ids) == ["^fine", "^fine"]
    assert [(s.reason, s.count) for s in texts.skipped] == [(INVALID, 1)]


def test_what_is_cut_off_is_not_tokenised(load, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    tokenise = ByteTokenizer.__call__

    def spied(self: ByteTokenizer, texts: list[str], **settings: Any) -> Any:
        seen.extend(map(len, texts))
        return tokenise(self, texts, **settings)

    monkeypatch.setattr(ByteTokenizer, "__call__", spied)
    texts = load([{"text": "ab" * 5_000_000}], on_long_text="cut", max_tokens=4)
    assert as_text(texts.token_ids) == ["^aba"]
    assert texts.num_cut == 1
    assert max(seen) == 200_000


def test_texts_of_special_tokens_are_counted_or_refused(load) -> None:
    rows = [{"text": "a<end>b"}, {"text": "fine"}]
    assert "which it becomes: 1 rows (first: texts.jsonl line 1: '<end>')" in load(rows).describe()
    with pytest.raises(DataError, match="'<end>' is that of a special token"):
        load(rows, on_special_text="refuse")
