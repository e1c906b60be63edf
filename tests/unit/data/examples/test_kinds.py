"""Demonstrations, rankings, feedback and texts: what each makes of a row, and refuses."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.data.examples import (
    load_demonstrations,
    load_feedback,
    load_rankings,
    load_texts,
)
from rlhf_ray.data.rows import DataError
from rlhf_ray.models.tiny.tokenizer import train_tokenizer

USER = {"role": "user", "content": "Hi"}
SAYS = {"role": "assistant", "content": "Hello."}
PAIR = {"prompt": [USER], "chosen": "Good day.", "rejected": "What?", "margin": None}
ROWS = [{"text": f"text number {i}"} for i in range(9)]


def parts(sample, tokenizer) -> tuple[str, str]:
    """Context and predicted tokens as text."""
    return (
        tokenizer.decode(sample.token_ids[~sample.loss_mask]),
        tokenizer.decode(sample.token_ids[sample.loss_mask]),
    )


class TestDemonstrations:
    def test_conversation(self, source, tokenizer) -> None:
        chat = [USER, SAYS, {"role": "user", "content": "More"}, {**SAYS, "content": "No."}, USER]
        loaded = load_demonstrations(source([{"messages": chat}]), tokenizer, seed=0)
        (sample,) = loaded.train
        assert parts(sample, tokenizer) == (
            "<user>Hi<assistant><user>More<assistant>",
            "Hello.<eos>No.<eos>",
        )

    def test_prompt_and_answer(self, source, tokenizer) -> None:
        rows = [
            {"prompt": "Hi", "answer": "Hello."},
            # What the prompt has of its own is context.
            {"prompt": [USER, SAYS, USER], "answer": "Again?", "messages": None},
        ]
        plain, chat = load_demonstrations(source(rows), tokenizer, seed=0).train
        assert parts(plain, tokenizer) == ("<user>Hi<assistant>", "Hello.<eos>")
        assert parts(chat, tokenizer) == (
            "<user>Hi<assistant>Hello.<eos><user>Hi<assistant>",
            "Again?<eos>",
        )

    def test_system_prompt(self, source, tokenizer) -> None:
        own = [{"role": "system", "content": "Mine."}, USER, SAYS]
        rows = [{"messages": [USER, SAYS]}, {"messages": own}]
        loaded = load_demonstrations(source(rows, system_prompt="Be brief."), tokenizer, seed=0)
        assert [parts(sample, tokenizer)[0] for sample in loaded.train] == [
            "Be brief.<user>Hi<assistant>",
            "Mine.<user>Hi<assistant>",
        ]

    def test_without_a_template(self, source, tokenizer) -> None:
        plain = source([{"prompt": "Hi ", "answer": "there"}], apply_chat_template=False)
        (sample,) = load_demonstrations(plain, tokenizer, seed=0).train
        assert parts(sample, tokenizer) == ("Hi ", "there<eos>")
        chat = source([{"messages": [USER, SAYS]}], apply_chat_template=False)
        with pytest.raises(DataError, match=r"line 1: .* examples.apply_chat_template is false"):
            load_demonstrations(chat, tokenizer, seed=0)

    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ("Hi", "must be text or a list of messages"),
            ([], "is a chat without messages"),
            ([USER], "the assistant says nothing"),
            ([USER, {**SAYS, "content": " "}], "the assistant says nothing"),
            ([SAYS], "message 1 .* of the role 'assistant', which cannot begin a chat"),
            ([USER, USER, SAYS], "message 2 .* 'user', which cannot follow 'user'"),
            ([USER, SAYS, SAYS], "message 3 .* 'assistant', which cannot follow 'assistant'"),
            ([USER, {"role": "gpt", "content": "x"}], "'role' of message 2 .* is 'gpt'; .*one of"),
            ([USER, {"role": "assistant"}], "message 2 in column 'messages' has no 'content'"),
        ],
    )
    def test_chats_that_show_nothing(self, source, tokenizer, messages, message) -> None:
        rows = [{"messages": [USER, SAYS]}, {"messages": messages}]
        with pytest.raises(DataError, match=rf"rows.jsonl line 2: .*{message}"):
            load_demonstrations(source(rows), tokenizer, seed=0)
        loaded = load_demonstrations(source(rows, on_bad_row="skip"), tokenizer, seed=0)
        assert len(loaded.train) == 1


class TestRankings:
    def test_pair(self, source, tokenizer) -> None:
        rows = [{**PAIR, "ranking": None}, {**PAIR, "margin": 2}]
        plain, wide = load_rankings(source(rows), tokenizer, seed=0).train
        assert [parts(answer, tokenizer) for answer in plain.answers] == [
            ("<user>Hi<assistant>", "Good day.<eos>"),
            ("<user>Hi<assistant>", "What?<eos>"),
        ]
        assert (plain.margin, wide.margin) == (None, 2.0)

    def test_ranking(self, source, tokenizer) -> None:
        rows = [{**PAIR, "ranking": ["a", "b", "c"], "prompt": [USER, SAYS, USER]}]
        (ranking,) = load_rankings(source(rows), tokenizer, seed=0).train
        assert [parts(answer, tokenizer)[1] for answer in ranking.answers] == [
            "a<eos>",
            "b<eos>",
            "c<eos>",
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rejected": "Good day."}, "'chosen' and 'rejected' have the same answer"),
            ({"ranking": ["a", "b", "a"]}, "column 'ranking' has the same answer twice: 'a'"),
            ({"ranking": ["a"]}, "must be a list of two answers or more"),
            ({"ranking": "ab"}, "must be a list of two answers or more"),
            ({"ranking": ["a", 3]}, r"column 'ranking' must be text; it is 3 \(int\)"),
            ({"chosen": " "}, "column 'chosen' is empty"),
            (
                {"margin": -1},
                "column 'margin' must be a number of at least 0 and at most 1,000,000; it is -1",
            ),
            ({"margin": True}, "column 'margin' must be a number"),
            ({"prompt": [USER, SAYS]}, "ends with a message of the assistant"),
        ],
    )
    def test_refused(self, source, tokenizer, change: dict[str, Any], message: str) -> None:
        rows = [PAIR, {**PAIR, **change}]
        with pytest.raises(DataError, match=rf"rows.jsonl line 2: .*{message}"):
            load_rankings(source(rows), tokenizer, seed=0)
        assert len(load_rankings(source(rows, on_bad_row="skip"), tokenizer, seed=0).train) == 1

    def test_answers_that_differ_for_people_alone(self, source) -> None:
        """A tokenizer that folds case makes one answer of two."""
        tokenizer = train_tokenizer(["a b"], lowercase=True)
        rows = [{**PAIR, "chosen": "Yes", "rejected": "yes"}]
        with pytest.raises(DataError, match="line 1: two answers of a ranking have the same token"):
            load_rankings(source(rows), tokenizer, seed=0)


class TestFeedback:
    def test_good_and_bad(self, source, tokenizer) -> None:
        verdicts = [True, False, "True", " false"]
        rows = [{"prompt": "Hi", "answer": "Hello.", "good": good} for good in verdicts]
        loaded = load_feedback(source(rows), tokenizer, seed=0)
        assert [item.is_good for item in loaded.train] == [True, False, True, False]
        assert parts(loaded.train[0].sample, tokenizer) == ("<user>Hi<assistant>", "Hello.<eos>")

    @pytest.mark.parametrize("good", [None, 1, "yes"])
    def test_refused(self, source, tokenizer, good: Any) -> None:
        rows = [{"prompt": "Hi", "answer": "x", "good": good}]
        with pytest.raises(DataError, match="line 1: column 'good' must be true or false"):
            load_feedback(source(rows), tokenizer, seed=0)


class TestTexts:
    def test_pieces(self, source, tokenizer) -> None:
        packed = source(ROWS, max_tokens=11, shuffle=False)
        loaded = load_texts(packed, tokenizer, seed=0)
        stream = "".join(f"text number {i}<eos>" for i in range(9))
        assert "".join(tokenizer.decode(s.token_ids) for s in loaded.train) == stream
        assert [len(s.token_ids) for s in loaded.train[:-1]] == [11] * (len(loaded.train) - 1)
        for sample in loaded.train:
            assert sample.loss_mask.tolist() == [False] + [True] * (len(sample.token_ids) - 1)

    def test_a_last_piece_of_one_token_has_nothing_to_predict(self, source, tokenizer) -> None:
        num_tokens = len(tokenizer("xyz")["input_ids"])
        packed = source([{"text": "xyz"}], max_tokens=num_tokens)
        (sample,) = load_texts(packed, tokenizer, seed=0).train
        assert tokenizer.decode(sample.token_ids) == "xyz"

    def test_the_order_is_the_seeds(self, source, tokenizer) -> None:
        def stream(seed: int) -> list[str]:
            packed = source(ROWS, max_tokens=1000)
            (sample,) = load_texts(packed, tokenizer, seed=seed).train
            return tokenizer.decode(sample.token_ids).split("<eos>")

        assert stream(1) == stream(1) != stream(2)
        assert sorted(stream(1)) == sorted(stream(2))

    def test_separate(self, source, tokenizer) -> None:
        rows = [{"text": "abcdefgh"}, {"text": "xy"}]
        loaded = load_texts(source(rows, pack_texts=False, max_tokens=5), tokenizer, seed=0)
        assert [tokenizer.decode(s.token_ids) for s in loaded.train] == ["abcde", "xy<eos>"]
        assert loaded.num_cut == 1

    def test_held_out_texts_are_in_no_piece(self, source, tokenizer) -> None:
        loaded = load_texts(source(ROWS, eval_share=0.5), tokenizer, seed=0)
        sides = [
            {text for s in side for text in tokenizer.decode(s.token_ids).split("<eos>") if text}
            for side in (loaded.train, loaded.held_out)
        ]
        assert sides[0] | sides[1] == {row["text"] for row in ROWS}
        assert sides[0] & sides[1] == set()
        assert all(sides)

    def test_tokenizer_that_ends_texts_itself(self, source) -> None:
        from tokenizers.processors import TemplateProcessing

        tokenizer = train_tokenizer(["a b"])
        end = tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", end)]
        )
        (sample,) = load_texts(source([{"text": "ab"}]), tokenizer, seed=0).train
        assert sample.token_ids.tolist().count(end) == 1

    def test_refused(self, source, tokenizer) -> None:
        rows = [*ROWS, {"text": " "}]
        with pytest.raises(DataError, match="line 10: column 'text' is empty"):
            load_texts(source(rows), tokenizer, seed=0)
        assert load_texts(source(rows, on_bad_row="skip"), tokenizer, seed=0).skipped[0].count == 1
        endless = train_tokenizer(["a b"])
        endless.eos_token = None
        with pytest.raises(DataError, match="tokenizer has no end-of-text token"):
            load_texts(source(ROWS), endless, seed=0)
