"""Comparison of two tokenizers: whether the same ids mean the same text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_SHOWN = 3
# Case, digits, spaces, line breaks, accents and other scripts: tokenizers with the same vocabulary
# may differ on them.
_TEXTS = (
    "What is 12345+67? The answer isn't here.",
    "  Two  spaces,\n\na\ttab and a line break \n",
    "Ünïcödé: 你好, мир, naïve café — 🙂",
    "def f(x):\n    return x ** 2  # CamelCase_and_snake",
)


def tokenizer_differences(
    policy: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> list[str]:
    """Describe the differences of two tokenizers; empty if ids of one serve for the other.

    Padding tokens are not compared, because no padding is sent between the models.
    """
    return [*_vocabularies(policy, other), *_specials(policy, other), *_behaviour(policy, other)]


def _vocabularies(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Iterator[str]:
    ours, theirs = one.get_vocab(), other.get_vocab()
    differing = sorted({token for token, _ in ours.items() ^ theirs.items()})
    if differing:
        shown = ", ".join(
            f"{token!r} is {_id(ours, token)} and {_id(theirs, token)}"
            for token in differing[:_MAX_SHOWN]
        )
        yield (
            f"vocabularies of {len(ours)} and {len(theirs)} tokens, {len(differing)} of which "
            f"differ in their id ({shown})"
        )


def _specials(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Iterator[str]:
    for name, ours, theirs in (
        ("end-of-text token", one.eos_token, other.eos_token),
        ("beginning-of-text token", one.bos_token, other.bos_token),
    ):
        if ours != theirs:
            yield f"{name} {ours!r} and {theirs!r}"
    if one.chat_template != other.chat_template:
        words = [
            "none" if template is None else f"one of {len(str(template))} characters"
            for template in (one.chat_template, other.chat_template)
        ]
        between = "and" if other.chat_template is None else "and another one,"
        yield f"chat templates: {words[0]} {between} {words[1]}"


def _behaviour(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Iterator[str]:
    for adds_specials in (False, True):
        for text in _TEXTS:
            ours, theirs = (
                tokenizer(text, add_special_tokens=adds_specials)["input_ids"]
                for tokenizer in (one, other)
            )
            if ours != theirs:
                yield f"token ids of the text {text!r}"
                return


def _id(vocabulary: dict[str, int], token: str) -> str:
    return str(vocabulary.get(token, "not there"))
