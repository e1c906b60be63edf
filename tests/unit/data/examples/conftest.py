"""Rows in a file, and the built-in tokenizer with chat templates of many manners."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.models.tiny.tokenizer import train_tokenizer

# Each is what templates of real models do, in a few words; <eos> ends a turn.
_FOR = "{% for m in messages %}"
_GENERATION_PROMPT = "{% if add_generation_prompt %}<assistant>\n{% endif %}"
TEMPLATES = {
    # A header with a line break, and white space after the end of a turn.
    "chatml": _FOR + "<user>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<user>assistant\n{% endif %}",
    # No generation prompt at all, and a space in front of the end.
    "inst": _FOR + "{% if m.role == 'assistant' %} {{ m.content }} <eos>"
    "{% else %}[{{ m.role }}] {{ m.content }} [/]{% endif %}{% endfor %}",
    # Plain words for roles: the text of prompt and answer meets inside a word's token.
    "words": _FOR + "{{ m.role }}: {{ m.content }}{{ '<eos>' if m.role == 'assistant' }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    # Marks around answer and end.
    "marked": _FOR + "{% if m.role == 'assistant' %}<assistant>\n{% generation %}{{ m.content }}"
    "<eos>\n{% endgeneration %}{% else %}<user>{{ m.content }}\n{% endif %}{% endfor %}"
    + _GENERATION_PROMPT,
    # Marks that leave the end out.
    "marked_open": _FOR + "{% if m.role == 'assistant' %}<assistant>\n{% generation %}"
    "{{ m.content }}{% endgeneration %}<eos>{% else %}<user>{{ m.content }}\n{% endif %}"
    "{% endfor %}" + _GENERATION_PROMPT,
    # The last answer is written with thoughts, and ends with the end of the text as well.
    "thoughts": _FOR + "{% if m.role == 'assistant' %}<assistant>\n{% if loop.last %}((no))\n"
    "{% endif %}{{ m.content }}<eos>\n{{ '<pad>' if loop.last and not add_generation_prompt }}"
    "{% else %}<user>{{ m.content }}\n{% endif %}{% endfor %}" + _GENERATION_PROMPT,
}
# What each writes of an answer, up to the end of its turn; `thoughts` differs for the last one.
WRITTEN: dict[str, Callable[[str], str]] = {
    "tiny": lambda content: content + "<eos>",
    "chatml": lambda content: content + "<eos>",
    "inst": lambda content: f" {content} <eos>",
    "words": lambda content: content + "<eos>",
    "marked": lambda content: content + "<eos>",
    "marked_open": lambda content: content + "<eos>",
    "thoughts": lambda content: content + "<eos>",
}
_TEXTS = (
    "What is the sum of these numbers?",
    "assistant: The answer to the question is not known to them.",
    "user: Where is my order, and when will that be here?",
)


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """The built-in tokenizer with one of the templates; `tiny` is its default."""
    tokenizer = train_tokenizer(_TEXTS, vocab_size=340)
    if template != "tiny":
        tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One for each template."""
    return {name: tokenizer_with(name) for name in WRITTEN}


@pytest.fixture(scope="session")
def written() -> dict[str, Callable[[str], str]]:
    """Text that each template writes for an answer."""
    return WRITTEN


@pytest.fixture
def tokenizer(tokenizers) -> PreTrainedTokenizerFast:
    """The built-in tokenizer with its default template: <user>...<assistant>...<eos>."""
    return tokenizers["tiny"]


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., ExamplesConfig]:
    """A configuration whose file holds the rows; a row that is text is written as it is.

    Nothing is held out unless the settings say so.
    """

    def call(rows: list[Any], **settings: Any) -> ExamplesConfig:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines))
        settings.setdefault("eval_share", None if "eval_path" in settings else 0.0)
        return ExamplesConfig(path=str(path), **settings)

    return call
