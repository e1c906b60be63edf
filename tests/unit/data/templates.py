"""Chat templates in the manner of real ones, in what they write and what they leave out."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from rlhf_ray.models.tiny.tokenizer import train_tokenizer

_TOOLS = "{% if tools %}<pad>{{ tools | tojson }}<eos>{% endif %}"
_CALLS = "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}"
_TURN = "<user>{{ m.role }}\n"
_PROMPT = "{% if add_generation_prompt %}<user>assistant\n{% endif %}"


def _template(body: str, *, tools: bool = True) -> str:
    loop = f"{{% for m in messages %}}{body}{{% endfor %}}"
    return f"{_TOOLS if tools else ''}{loop}{_PROMPT}"


TEMPLATES = {
    # Writes tools, calls and content.
    "whole": _template(_TURN + "{{ m.content }}" + _CALLS + "<eos>\n"),
    # The same, with marks around the answers.
    "marked": _template(
        _TURN + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}" + _CALLS + "<eos>"
        "{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}{{ '\n' }}"
    ),
    # Calls outside of the marks.
    "calls_unmarked": _template(
        _TURN + "{% if m.role == 'assistant' %}" + _CALLS + "{% generation %}{{ m.content }}<eos>"
        "{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}"
    ),
    # No place for tools, or for calls.
    "no_tools": _template(_TURN + "{{ m.content }}" + _CALLS + "<eos>\n", tools=False),
    "no_calls": _template(_TURN + "{{ m.content }}<eos>\n"),
    # Only the first call; the arguments left out; the content left out where there are calls.
    "first_call": _template(
        _TURN + "{{ m.content }}{% if m.tool_calls %}"
        "<call>{{ m.tool_calls[0].function | tojson }}</call>{% endif %}<eos>\n"
    ),
    "no_arguments": _template(
        _TURN + "{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function.name }}</call>"
        "{% endfor %}<eos>\n"
    ),
    "calls_alone": _template(
        _TURN + "{% if m.tool_calls %}" + _CALLS + "{% else %}{{ m.content }}{% endif %}<eos>\n"
    ),
    # Thoughts in the last answer alone, from a field or from tags; an empty thought otherwise.
    "thinks": _template(
        _TURN + "{% set said = m.content %}{% set thought = m.reasoning_content or '' %}"
        "{% if '</think>' in said %}{% set thought = said.split('</think>')[0]"
        ".split('<think>')[-1].strip() %}{% set said = said.split('</think>')[-1].lstrip() %}"
        "{% endif %}{% if m.role == 'assistant' and loop.last %}<think>\n{{ thought }}\n</think>"
        "\n\n{% endif %}{{ said }}" + _CALLS + "<eos>\n"
    ),
    "trims": _template(_TURN + "{{ m.content | trim }}<eos>\n"),
    "shouts": _template(
        _TURN + "{{ m.content | upper if m.role == 'assistant' else m.content }}<eos>\n"
    ),
    "escapes": _template(
        _TURN + "{{ m.content | tojson if m.role == 'assistant' else m.content }}<eos>\n"
    ),
    # No messages but those of the user and the assistant.
    "two_roles": _template(
        "{% if m.role in ('user', 'assistant') %}" + _TURN + "{{ m.content }}<eos>\n{% endif %}"
    ),
    # The name of a tool, which others leave out.
    "names": _template(_TURN + "{{ m.name or '' }}{{ m.content }}" + _CALLS + "<eos>\n"),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The built-in tokenizer with one of the templates."""
    tokenizer = train_tokenizer(["user assistant tool What is the sum? hello"])
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer
