"""Behaviour of all kinds of examples: split, lengths, broken rows, columns, fingerprints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.examples import load_demonstrations, load_rankings, load_texts
from rlhf_ray.data.examples.split import content_key, is_held_out
from rlhf_ray.data.rows import DataError

ROWS = [{"prompt": f"question {i}?", "answer": f"answer {i}"} for i in range(40)]
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def load(source, tokenizer):
    """Demonstrations of rows."""

    def call(rows: list[Any], **settings: Any):
        return load_demonstrations(source(rows, **settings), tokenizer, seed=3)

    return call


def texts_of(samples, tokenizer) -> list[str]:
    return [tokenizer.decode(sample.token_ids) for sample in samples]


class TestSplit:
    def test_added_rows_move_none(self, load, tokenizer) -> None:
        before, after = load(ROWS[5:30], eval_share=0.3), load(ROWS[::-1], eval_share=0.3)
        assert before.held_out
        assert {*texts_of(before.held_out, tokenizer)} <= {*texts_of(after.held_out, tokenizer)}
        assert {*texts_of(before.train, tokenizer)} <= {*texts_of(after.train, tokenizer)}
        assert len(after.train) + len(after.held_out) == len(ROWS)

    @settings(deadline=None)
    @given(key=st.text(), small=st.floats(0, 0.99), large=st.floats(0, 0.99))
    def test_a_larger_share_holds_out_more(self, key: str, small: float, large: float) -> None:
        small, large = sorted((small, large))
        assert is_held_out(key, small) <= is_held_out(key, large)

    def test_share_of_many(self) -> None:
        count = sum(is_held_out(f"row {number}", 0.1) for number in range(5000))
        # Five standard deviations of 5000 coins.
        assert abs(count - 500) < 106
        assert not any(is_held_out(f"row {number}", 0.0) for number in range(100))

    def test_a_prompt_is_on_one_side(self, load, tokenizer) -> None:
        rows = [{**row, "answer": answer} for row in ROWS for answer in ("yes", "no")]
        loaded = load(rows, eval_share=0.4)
        sides = [
            {text.partition("<assistant>")[0] for text in texts_of(side, tokenizer)}
            for side in (loaded.train, loaded.held_out)
        ]
        assert all(sides)
        assert sides[0] & sides[1] == set()

    def test_an_id_decides_where_there_is_one(self, load, tokenizer) -> None:
        rows = [{**row, "key": f"k{i}"} for i, row in enumerate(ROWS)]
        changed = [{**row, "prompt": f"other {i}"} for i, row in enumerate(rows)]
        numbers = [
            [text.rpartition("answer ")[2] for text in texts_of(loaded.held_out, tokenizer)]
            for loaded in (
                load(rows, id_column="key", eval_share=0.3),
                load(changed, id_column="key", eval_share=0.3),
            )
        ]
        assert numbers[0] == numbers[1] != []
        assert numbers[0] == [f"{i}<eos>" for i in range(40) if is_held_out(f"k{i}", 0.3)]

    def test_a_separate_source(self, load, tokenizer, tmp_path) -> None:
        path = tmp_path / "held_out.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in ROWS[:3]))
        loaded = load(ROWS[3:], eval_path=str(path))
        assert len(loaded.train) == len(ROWS) - 3
        assert texts_of(loaded.held_out, tokenizer) == [
            f"<user>question {i}?<assistant>answer {i}<eos>" for i in range(3)
        ]
        with pytest.raises(DataError, match=r"examples.eval_path is '.*/gone.jsonl': no such file"):
            load(ROWS, eval_path=str(tmp_path / "gone.jsonl"))

    def test_default(self, source) -> None:
        assert source(ROWS, eval_share=None).held_out_share == 0.05
        assert source(ROWS, eval_path="x").held_out_share == 0.0

    def test_keys_of_content(self) -> None:
        assert content_key([["user", "é"]]) == '[["user", "é"]]'


class TestLengths:
    LONG = ({"prompt": "q", "answer": "abcdefgh" * 3}, {"prompt": "q", "answer": "x"})

    def test_cut(self, load, tokenizer) -> None:
        loaded = load(list(self.LONG), max_tokens=8)
        assert [len(sample.token_ids) for sample in loaded.train] == [8, 5]
        assert [sample.loss_mask.sum().item() for sample in loaded.train] == [5, 2]
        assert loaded.num_cut == 1
        assert "cut to examples.max_tokens: 1" in loaded.describe()

    def test_an_answer_that_is_cut_away_is_skipped(self, load) -> None:
        loaded = load([{"prompt": "q" * 20, "answer": "x"}, self.LONG[1]], max_tokens=8)
        assert len(loaded.train) == 1
        (skipped,) = loaded.skipped
        assert (skipped.reason, skipped.count) == ("cut down to nothing to learn", 1)
        assert "rows.jsonl line 1: has 24 tokens, cut to 8" in skipped.example
        assert loaded.num_cut == 0

    def test_skip(self, load) -> None:
        loaded = load(list(self.LONG), max_tokens=8, on_long="skip")
        assert len(loaded.train) == 1
        assert [(s.reason, s.count) for s in loaded.skipped] == [("too long", 1)]
        assert "skipped, too long: 1 (first: rows.jsonl line 1" in loaded.describe()

    def test_error(self, load) -> None:
        with pytest.raises(DataError, match=r"line 1: has 28 tokens, and .*max_tokens is 27"):
            load(list(self.LONG), max_tokens=27, on_long="error")
        assert load(list(self.LONG), max_tokens=28, on_long="error").num_cut == 0

    def test_answers_that_become_the_same(self, source, tokenizer) -> None:
        rows = [{"prompt": "q", "chosen": "abcdefgX", "rejected": "abcdefgY"}, PAIR]
        loaded = load_rankings(source(rows, max_tokens=8), tokenizer, seed=0)
        assert len(loaded.train) == 1
        assert "two answers of a ranking have the same tokens" in loaded.skipped[0].example


class TestBadRows:
    def test_refused_or_counted(self, load) -> None:
        rows = [ROWS[0], "{", {"prompt": 5, "answer": "x"}, {"prompt": "x"}, "[]", ROWS[1]]
        with pytest.raises(DataError, match=r"line 2: is not JSON.* examples.on_bad_row=skip"):
            load(rows)
        loaded = load(rows, on_bad_row="skip")
        assert len(loaded.train) == 2
        assert [(s.reason, s.count) for s in loaded.skipped] == [
            ("broken row", 2),
            ("invalid row", 2),
        ]

    def test_two_rows_with_one_id(self, load) -> None:
        rows = [{**ROWS[0], "key": "a"}, {**ROWS[1], "key": "a"}]
        with pytest.raises(DataError, match=r"line 2: the row has the id 'a' of rows.jsonl line 1"):
            load(rows, id_column="key")

    def test_missing_columns(self, load) -> None:
        with pytest.raises(DataError) as caught:
            load([{"message": "x"}])
        message = str(caught.value)
        assert "has no columns 'messages' (examples.messages_column), nor" in message
        assert "did you mean 'message'?" in message
        with pytest.raises(DataError, match=r"examples.id_column is 'key', and"):
            load(ROWS, id_column="key")

    def test_nothing_left(self, load) -> None:
        with pytest.raises(DataError, match=r"has no rows$"):
            load([])
        with pytest.raises(DataError, match=r"none of the demonstrations in .* is left.*too long"):
            load(ROWS, max_tokens=2, on_long="skip")

    def test_an_answer_without_an_end_is_counted(self, source) -> None:
        from rlhf_ray.models.tiny.tokenizer import train_tokenizer

        tokenizer = train_tokenizer(["a b"])
        tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
        loaded = load_demonstrations(source(ROWS[:3]), tokenizer, seed=0)
        assert loaded.num_unended == 3
        assert "no special token ends: 3" in loaded.describe()


class TestFingerprint:
    def test_same_data(self, load) -> None:
        assert load(ROWS).fingerprint == load(ROWS).fingerprint
        assert load(ROWS).vocabulary_size > 256

    @pytest.mark.parametrize(
        ("rows", "settings"),
        [
            (ROWS[::-1], {}),
            (ROWS[1:], {}),
            ([{**ROWS[0], "answer": "no"}, *ROWS[1:]], {}),
            (ROWS, {"system_prompt": "x"}),
            (ROWS, {"eval_share": 0.3}),
        ],
    )
    def test_other_data(self, load, rows, settings) -> None:
        assert load(rows, **settings).fingerprint != load(ROWS).fingerprint

    def test_the_margin_counts(self, source, tokenizer) -> None:
        one, other = (
            load_rankings(source([{**PAIR, "margin": margin}]), tokenizer, seed=0).fingerprint
            for margin in (1, 2)
        )
        assert one != other


class TestUnread:
    def test_columns(self, load) -> None:
        rows = [{**ROWS[0], "id": "x", "system": "Be rude", "weight": 0}, {**ROWS[1], "system": ""}]
        said = load(rows).describe()
        assert (
            "columns of the rows that are not read, and change nothing that is learnt: 'system' "
            "(1 rows), 'weight' (1 rows)"
        ) in said
        assert "not read" not in load([{**row, "id": "x", "tools": []} for row in ROWS]).describe()
        assert "'tools' (1 rows)" in load([{**ROWS[0], "tools": [1]}], tools_column=None).describe()

    def test_two_layouts_in_one_row(self, load) -> None:
        chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
        said = load([{**ROWS[0], "messages": chat}]).describe()
        assert "'prompt' and 'answer' of a row with 'messages' are not read: 1 rows" in said

    def test_rankings(self, source, tokenizer) -> None:
        def said(**more: Any) -> str:
            row = {"prompt": "q", "ranking": ["a", "b", "c"], **more}
            return load_rankings(source([row]), tokenizer, seed=3).describe()

        pairs = [[0, 1], [0, 2], [1, 2]]
        same = said(chosen="a", rejected="c", margin=2, ranking_pairs=pairs)
        assert "equal rank" not in same
        assert "another answer" not in same
        assert "answers of equal rank" in said(ranking_pairs=pairs[:2])
        assert "'rejected' of a row with 'ranking' is not read, and is another" in said(
            rejected="b"
        )

    @pytest.mark.parametrize("margin", ["1_000", "\u0663", 1e308, "1e7", True])
    def test_margins(self, source, tokenizer, margin) -> None:
        with pytest.raises(DataError, match="column 'margin' must be a number of at least 0"):
            load_rankings(source([{**PAIR, "margin": margin}]), tokenizer, seed=3)


class TestOverlap:
    def test_rows_of_both_sides(self, load, tmp_path) -> None:
        def said(rows: list[Any], **settings: Any) -> str:
            path = tmp_path / "held_out.jsonl"
            path.write_text("\n".join(json.dumps(row) for row in rows))
            return load(ROWS, eval_path=str(path), **settings).describe()

        assert "warning: held-out rows that are learnt from too: 40 of 40 (100%)" in said(ROWS)
        part = said([*ROWS[:3], {**ROWS[3], "answer": "other"}, {"prompt": "new", "answer": "x"}])
        assert "learnt from too: 3 of 5" in part
        assert "whose question is also learnt from: 4 of 5 (80%)" in part
        assert "learnt from:" not in said([{"prompt": "new", "answer": "x"}])
        assert "learnt from too" not in load(ROWS, eval_share=0.3).describe()

    def test_texts(self, source, tokenizer, tmp_path) -> None:
        rows = [{"text": f"text {number}"} for number in range(9)]
        path = tmp_path / "held_out.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows[:4]))
        loaded = load_texts(source(rows, eval_path=str(path)), tokenizer, seed=3)
        assert "learnt from too: 4 of 4" in loaded.describe()

    def test_one_question_for_all_rows(self, load) -> None:
        rows = [{"prompt": "Hi", "answer": f"a{number}"} for number in range(9)]
        with pytest.raises(DataError, match=r"all 9 are held out .*same question .*id_column"):
            load(rows, eval_share=0.99)
