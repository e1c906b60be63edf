"""Texts that are rendered already get one beginning and one end, wherever texts are tokenised."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig, TextsConfig
from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.data.examples import (
    load_demonstrations,
    load_feedback,
    load_rankings,
    load_texts,
)
from rlhf_ray.data.examples.answer_encoding import encode_answers
from rlhf_ray.data.examples.sets import samples_of
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.data.ptx_texts import load_texts as load_ptx_texts
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.records import Prompt
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.testing.turns import CHATML, TEXT_END, TURN_END, two_ends_tokenizer

BOS = "<s>"


@pytest.fixture(params=[False, True], ids=["begins", "begins_and_ends"])
def tokenizer(request):
    """A tokenizer that puts a token before every text, and maybe one behind it."""
    return two_ends_tokenizer(bos=BOS, adds_end=request.param, template=None)


@pytest.fixture
def write(tmp_path):
    def call(*rows) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return call


def text_of(tokenizer, ids) -> str:
    return str(tokenizer.decode(ids))


def examples(path: str) -> ExamplesConfig:
    return ExamplesConfig(path=path, eval_share=0.0, apply_chat_template=False, pack_texts=False)


class TestEncoder:
    @pytest.mark.parametrize(
        ("text", "written"), [("hi", "<s>hi"), ("<s>hi", "<s>hi"), ("", "<s>"), ("<s>", "<s>")]
    )
    def test_one_beginning(self, tokenizer, text, written) -> None:
        (ids,) = PlainEncoder(tokenizer).encode([text])
        assert text_of(tokenizer, ids) == written

    def test_the_end_is_added_once_where_it_is_wanted(self) -> None:
        tokenizer = two_ends_tokenizer(bos=BOS, adds_end=True)
        found = PlainEncoder(tokenizer).encode(["hi", f"<s>hi{TEXT_END}"], with_end=True)
        assert [text_of(tokenizer, ids) for ids in found] == [f"<s>hi{TEXT_END}"] * 2

    def test_as_the_tokenizer_itself_for_other_texts(self) -> None:
        texts = ["hi", " hello\n", "", "What is the sum? é 漢"]
        for adds_end in (False, True):
            tokenizer = two_ends_tokenizer(bos=BOS, adds_end=adds_end)
            found = PlainEncoder(tokenizer).encode(texts, with_end=True)
            assert found == tokenizer(texts)["input_ids"]
        plain = two_ends_tokenizer()
        assert PlainEncoder(plain).encode(texts) == plain(texts)["input_ids"]

    def test_counts(self, tokenizer) -> None:
        encoder = PlainEncoder(tokenizer)
        assert encoder.lines() == []
        encoder.encode(["hi", "<s>hi", "<s>"])
        (line,) = encoder.lines()
        assert "'<s>' already" in line
        assert line.endswith(": 2")


class TestStages:
    """The same text, rendered and not, is the same sequence in every stage."""

    def test_demonstrations(self, tokenizer, write) -> None:
        rendered = {"prompt": "<s>hi", "answer": f" hello{TEXT_END}\n"}
        path = write(rendered, {"prompt": "hi", "answer": " hello"})
        found = load_demonstrations(examples(path), tokenizer, seed=0)
        texts = [text_of(tokenizer, sample.token_ids) for sample in found.train]
        assert texts == [f"<s>hi hello{TEXT_END}\n", f"<s>hi hello{TEXT_END}"]
        learnt = [text_of(tokenizer, s.token_ids[s.loss_mask]) for s in found.train]
        assert learnt == [f" hello{TEXT_END}"] * 2
        assert "begin with '<s>' already, which is not added again: 1" in found.describe()
        assert "none is added again: 1" in found.describe()

    def test_rankings_and_feedback(self, tokenizer, write) -> None:
        row = {"prompt": "<s>hi", "chosen": "yes", "rejected": f"no{TEXT_END}"}
        row |= {"answer": f"yes{TEXT_END}", "good": True}
        settings = examples(write(row))
        for load in (load_rankings, load_feedback):
            found = load(settings, tokenizer, seed=0)
            for sample in samples_of(found.train[0]):
                text = text_of(tokenizer, sample.token_ids)
                assert (text.count(BOS), text.count(TEXT_END)) == (1, 1)
            assert "'<s>' already" in found.describe()

    def test_an_answer_that_ends_its_turn_gets_no_other_end(self, write) -> None:
        tokenizer = two_ends_tokenizer(template=CHATML)
        path = write(
            {"prompt": "hi", "answer": f"hello{TURN_END}\n"}, {"prompt": "q", "answer": "a"}
        )
        found = load_demonstrations(examples(path), tokenizer, seed=0)
        texts = [text_of(tokenizer, s.token_ids[s.loss_mask]) for s in found.train]
        assert texts == [f"hello{TURN_END}", f"a{TEXT_END}"]

    @pytest.mark.parametrize("pack", [False, True])
    def test_raw_texts(self, tokenizer, write, pack) -> None:
        path = write({"text": f"<s>hi{TEXT_END}\n"}, {"text": "hi"})
        settings = ExamplesConfig(path=path, eval_share=0.0, pack_texts=pack)
        found = load_texts(settings, tokenizer, seed=0)
        texts = "".join(text_of(tokenizer, sample.token_ids) for sample in found.train)
        assert texts == f"<s>hi{TEXT_END}" * 2
        assert "'<s>' already, which is not added again: 1" in found.describe()
        assert "none is added again: 1" in found.describe()

    def test_texts_of_reinforcement_learning(self, tokenizer, write) -> None:
        found = load_ptx_texts(
            TextsConfig(path=write({"text": "<s>hi"}, {"text": "hi"})), tokenizer
        )
        assert found.token_ids[0] == found.token_ids[1]
        assert text_of(tokenizer, found.token_ids[0]).count(BOS) == 1
        assert "'<s>' already" in found.describe()

    def test_prompts(self, tokenizer, write) -> None:
        """A prompt never ends with the end of the text: the model is to go on."""
        data = DataConfig(
            path=write({"prompt": "<s>hi"}, {"prompt": "hi"}), apply_chat_template=False
        )
        found = load_prompts(data, tokenizer, seed=0)
        assert [text_of(tokenizer, p.token_ids) for p in found.prompts] == ["<s>hi", "<s>hi"]
        assert "'<s>' already, which is not added again: 1" in found.describe()

    def test_reward_scoring(self, tokenizer) -> None:
        messages = [{"role": "user", "content": "<s>hi"}]
        rows = encode_answers(
            messages, [f"yes{TEXT_END}", "yes", ""], [True, True, False], tokenizer
        )
        texts = []
        for row in rows:
            assert isinstance(row, LabelledTokens)
            texts.append(text_of(tokenizer, row.token_ids))
        assert texts == [f"<s>hiyes{TEXT_END}", f"<s>hiyes{TEXT_END}", "<s>hi"]

    def test_a_judges_question(self, tokenizer) -> None:
        judge = JudgeConfig(model="m", rubric="<s>{response}")
        prompt = Prompt(
            prompt_id="p",
            stream_index=0,
            text="",
            token_ids=(),
            answer=None,
            source="",
            seed=0,
            columns={},
        )
        question = Rubric(judge, tokenizer).question(prompt, "hi")
        assert text_of(tokenizer, question).count(BOS) == 1
        assert TEXT_END not in text_of(tokenizer, question)
