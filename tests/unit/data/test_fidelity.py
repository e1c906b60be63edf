"""Tokens that do not say their text are counted, in every kind of rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig, TextsConfig
from rlhf_ray.data import ptx_texts
from rlhf_ray.data.examples import load_demonstrations, load_texts
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.models.tiny.tokenizer import train_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)
LEARNT = "drops {} of what is learnt: 1 rows (first: rows.jsonl line 1: "


def _bytes() -> PreTrainedTokenizerFast:
    return train_tokenizer(("What is the sum of these numbers?",), vocab_size=300)


def _lowercase() -> PreTrainedTokenizerFast:
    tokenizer = _bytes()
    tokenizer._tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def _composed() -> PreTrainedTokenizerFast:
    tokenizer = _bytes()
    tokenizer._tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _hungry() -> PreTrainedTokenizerFast:
    """Its special tokens eat the white space next to them."""
    tokenizer = _bytes()
    names = ("<eos>", "<user>", "<assistant>")
    eats = [AddedToken(name, lstrip=True, rstrip=True, special=True) for name in names]
    tokenizer.add_tokens(eats, special_tokens=True)
    return tokenizer


def _of_letters(unknown: str | None) -> PreTrainedTokenizerFast:
    """Letters and spaces as SentencePiece has them: a space is put first, and taken away again."""
    texts = [
        "<eos>",
        "<user>",
        "<assistant>",
        *([unknown] if unknown else []),
        "▁",
        "\n",
        *"abcdefghijklmnopqrst",
    ]
    vocabulary = {text: number for number, text in enumerate([*texts, *"uvwxyz"])}
    model = models.BPE(vocabulary, [], unk_token=unknown)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        unk_token=unknown,
        extra_special_tokens=["<user>", "<assistant>"],
    )


@pytest.fixture
def lines(tmp_path):
    """What is said of a conversation, by kind of rows."""

    def call(tokenizer: Any, answer: str, kind: str = "sft", question: str = "ask") -> str:
        tokenizer.chat_template = TEMPLATE
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": question, "answer": answer, "text": answer}))
        examples = ExamplesConfig(path=str(path), eval_share=0)
        if kind == "sft":
            return load_demonstrations(examples, tokenizer, seed=0).describe()
        if kind == "pretrain":
            return load_texts(examples, tokenizer, seed=0).describe()
        if kind == "ptx":
            return ptx_texts.load_texts(TextsConfig(path=str(path)), tokenizer).describe()
        return load_prompts(DataConfig(path=str(path)), tokenizer, seed=0).describe()

    return call


@pytest.mark.parametrize("kind", ["sft", "pretrain", "ptx"])
def test_characters_that_the_vocabulary_lacks(lines, kind) -> None:
    said = lines(_of_letters(None), "so gr9ss", kind)
    assert LEARNT.format("characters") + "'so gr9ss" in said
    assert "becomes 'so grss" in said
    assert "becomes 'so gr[UNK]ss" in lines(_of_letters("[UNK]"), "so gr9ss", kind)


@pytest.mark.parametrize("kind", ["sft", "pretrain", "ptx"])
def test_a_normalizer(lines, kind) -> None:
    assert LEARNT.format("characters") + "'The A" in lines(_lowercase(), "The Answer", kind)
    assert "tokenizer" not in lines(_composed(), "cafe\u0301", kind)


def test_context_and_prompts(lines) -> None:
    said = lines(_lowercase(), "yes", question="Is it THERE")
    assert "drops characters of the context of what is learnt: 1 rows" in said
    assert "of what is learnt: 1 rows (first: rows.jsonl line 1: 'yes" not in said
    said = lines(_lowercase(), "yes", "rl", question="Is it THERE")
    assert "drops characters of a prompt: 1 rows (first: rows.jsonl line 1: " in said


@pytest.mark.parametrize("answer", ["    return x", "return x\n", " x"])
def test_white_space_that_an_added_token_eats(lines, answer) -> None:
    said = lines(_hungry(), answer)
    assert LEARNT.format("white space") + repr(answer)[:-1] in said
    assert "of the context" not in said


@pytest.mark.parametrize("kind", ["sft", "pretrain", "ptx", "rl"])
@pytest.mark.parametrize(
    "text", ["plain words", "    return x\n", "Größe 你好 \u200b\x00", " a", "a  b "]
)
def test_tokens_with_all_bytes_say_all(lines, kind, text) -> None:
    assert "tokenizer" not in lines(_bytes(), text, kind, question=text)


@pytest.mark.parametrize("kind", ["sft", "pretrain", "ptx", "rl"])
def test_spaces_that_come_and_go(lines, kind) -> None:
    assert "tokenizer" not in lines(_of_letters("[UNK]"), "plain words", kind)
    assert "tokenizer" not in lines(_hungry(), "plain words", kind)
