"""Limits of one request for answers, checked before any tokenizer or grammar sees it.

vLLM renders and tokenises all prompts on one thread, and compiles grammars on a few: a request that
is too large must be refused here, or it holds up all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlhf_ray.config.groups.deploy import ServeLimitsConfig
from rlhf_ray.serving.openai_errors import Refused

# Fields that become text of the prompt. `tokens` is the text of /detokenize.
_PROMPT_FIELDS = (
    "messages",
    "prompt",
    "suffix",
    "tokens",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
)
# Fields that constrain the answer by a grammar that the engine compiles, with the values that do
# not.
_CONSTRAINTS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("structured_outputs", ()),
    ("response_format", ({"type": "text"},)),
    ("tool_choice", ("auto", "none")),
)
# Longest average of text in natural languages and code is about 8; of a token in a vocabulary, 128.
CHARACTERS_PER_TOKEN = 16
_INTEGER = TypeAdapter(int)
_LARGEST_COUNT = 10**9
# All prompts of a request together: a few seconds of a tokenizer.
_CHARACTERS_TOGETHER = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Size of a JSON value.

    Attributes:
        characters: length of all texts, with keys, and of the numbers.
        items: number of all values in it.
    """

    characters: int
    items: int


def size_of(value: Any, *, most_characters: int, most_items: int, per_number: int = 1) -> Size:
    """Measure a JSON value; stops soon after a limit is passed, so that the cost is bounded.

    Args:
        per_number: characters that a number counts as.
    """
    characters = items = 0
    waiting = [value]
    while waiting and characters <= most_characters and items <= most_items:
        found = waiting.pop()
        if isinstance(found, str):
            characters += len(found)
        elif isinstance(found, dict):
            items += len(found)
            characters += sum(map(len, found))
            waiting.extend(found.values())
        elif isinstance(found, list):
            items += len(found)
            waiting.extend(found)
        elif isinstance(found, int | float) and not isinstance(found, bool):
            characters += per_number
    return Size(characters=characters, items=items)


def check_size(
    fields: Mapping[str, Any],
    limits: ServeLimitsConfig,
    *,
    context_tokens: int | None,
    max_requests: int,
) -> int:
    """Check a request's size.

    Args:
        fields: the request.
        context_tokens: longest prompt and answer of the model; None if it is not known yet.
        max_requests: the most requests in flight of the service.

    Returns:
        the number of answers that it asks for.

    Raises:
        Refused: 400, a limit is passed.
    """
    prompts = _prompts(fields.get("prompt"))
    most = limits.prompt_characters
    if most is None and context_tokens is not None:
        most = CHARACTERS_PER_TOKEN * context_tokens
    if most is not None:
        _check_prompts(fields, prompts, most)
    _check_parts(fields, limits.prompt_parts)
    if len(fields) > limits.field_items:
        raise Refused(400, f"the request has {len(fields):,} fields; send those of the API alone")
    for name, value in fields.items():
        if name not in _PROMPT_FIELDS:
            _check_field(name, value, limits)
    num_answers = len(prompts) * max(1, *(_count(fields.get(name)) for name in ("n", "best_of")))
    allowed = min(limits.answers, max_requests)
    if num_answers > allowed:
        raise Refused(
            400,
            f"the request asks for {num_answers:,} answers ({len(prompts):,} prompts, n="
            f"{shown(fields.get('n') or 1)}), and may ask for {allowed:,}: the smaller of "
            f"serve.limits.answers={limits.answers:,} and serve.max_requests_under_way="
            f"{max_requests:,}; send several requests",
        )
    return num_answers


def check_roles(fields: Mapping[str, Any], roles: Collection[str]) -> None:
    """Check the roles of the messages.

    A template writes an unknown role into the prompt as it is, and the model was not trained on it.

    Raises:
        Refused: 400, a message has another role.
    """
    messages = fields.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        role = message.get("role") if isinstance(message, dict) else None
        if role is not None and role not in roles:
            raise Refused(
                400,
                f"messages[{index}] has the role {shown(role)}, which is none of "
                f"{', '.join(roles)}; serve.roles lists the roles of the model",
            )


def check_tools(fields: Mapping[str, Any], *, parses_calls: bool) -> None:
    """Refuse tools where the calls in an answer would come back as plain text.

    Args:
        fields: a request for a chat.
        parses_calls: the engine reads calls out of answers.

    Raises:
        Refused: 400.
    """
    if parses_calls or not fields.get("tools") or fields.get("tool_choice") not in (None, "auto"):
        return
    raise Refused(
        400,
        "the request has tools, and this service has no parser for calls of tools, so that a call "
        "would come back as text. Start it with "
        "'generation.extra_engine_args={enable_auto_tool_choice: true, tool_call_parser: NAME}' "
        "(hermes, llama3_json, ...: the parser of the model's family), or send tool_choice=none to "
        "get the text",
    )


def constraint_of(fields: Mapping[str, Any]) -> str | None:
    """Name of the field that constrains the answer by a grammar; None if no field does."""
    for name, free in _CONSTRAINTS:
        value = fields.get(name)
        if value and value not in free:
            return name
    return None


def shown(value: Any) -> str:
    """A value of a request for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _prompts(prompt: Any) -> list[Any]:
    """The prompts of a request: a list holds several, unless it is one prompt of token ids."""
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return prompt if several else [prompt]


def _check_prompts(fields: Mapping[str, Any], prompts: list[Any], most: int) -> None:
    rest = [fields[name] for name in _PROMPT_FIELDS if name in fields and name != "prompt"]
    together = max(most, _CHARACTERS_TOGETHER)
    num_characters = 0
    for one in (rest, *prompts):
        size = size_of(one, most_characters=most, most_items=most, per_number=CHARACTERS_PER_TOKEN)
        if max(size.characters, size.items) > most:
            # In vLLM's words, by which clients see that a chat is too long.
            raise Refused(
                400,
                f"the prompt has more than {most:,} characters (a token id counts as "
                f"{CHARACTERS_PER_TOKEN}), the most for the model's maximum context length; "
                f"shorten it, or raise serve.limits.prompt_characters",
            )
        num_characters += size.characters
        if num_characters > together:
            raise Refused(
                400,
                f"the prompts have more than {together:,} characters together; send them in "
                f"several requests, or raise serve.limits.prompt_characters",
            )


def _check_parts(fields: Mapping[str, Any], most: int) -> None:
    parts = [fields[name] for name in _PROMPT_FIELDS if isinstance(fields.get(name), list | dict)]
    # Texts cost nothing to count; token ids are items, and limited by the characters.
    waiting, num_parts = [part for part in parts if not _is_flat(part)], 0
    while waiting:
        found = waiting.pop()
        num_parts += 1
        if num_parts > most:
            raise Refused(
                400,
                f"the prompt has more than serve.limits.prompt_parts={most:,} parts (messages, "
                f"pieces of content, tools); send fewer",
            )
        inner = found.values() if isinstance(found, dict) else found
        waiting.extend(one for one in inner if isinstance(one, list | dict) and not _is_flat(one))


def _is_flat(value: Any) -> bool:
    """Whether it is a list of token ids."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def _check_field(name: str, value: Any, limits: ServeLimitsConfig) -> None:
    size = size_of(value, most_characters=limits.field_characters, most_items=limits.field_items)
    if size.items > limits.field_items:
        raise Refused(
            400,
            f"{shown(name)} has more than serve.limits.field_items={limits.field_items:,} items",
        )
    if size.characters > limits.field_characters:
        raise Refused(
            400,
            f"{shown(name)} has more than serve.limits.field_characters="
            f"{limits.field_characters:,} characters",
        )


def _count(value: Any) -> int:
    """A count in a request, read as vLLM reads it: "3" and 3.0 are 3.

    The engine refuses what is no number.
    """
    try:
        # Cut, because Python does not print numbers of any length.
        return min(_INTEGER.validate_python(value), _LARGEST_COUNT)
    except ValidationError:
        return 1
