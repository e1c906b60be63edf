"""Values of the command line, with numbers and truths as they were typed where a key takes text.

Hydra reads 1.10 as a number, inside of brackets too, and the text of that number is 1.1.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import Override
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from rlhf_ray.config.schema import all_keys, text_keys, text_mappings

# A key of a stage of a pipeline is one of the configuration of that stage.
_OF_A_STAGE = re.compile(r"pipeline\.stages\.[^.]+\.(.+)", re.DOTALL)
# Entries of sources are mappings of any values: those that are text, and a source that is a path.
_OF_A_SOURCE = re.compile(
    r"prepare\.(?:sources|evaluation_sets)\.[^.]+"
    r"(?:\.(?:path|format|dataset_split|unit|layout|kind|task|columns\.[^.]+))?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Typed:
    """A number or truth, and its text on the command line."""

    value: bool | int | float
    text: str


class _Visitor(HydraOverrideVisitor):
    """Keeps the text of numbers and truths; those inside of a function are its arguments."""

    _functions_around = 0

    def visitFunction(self, ctx: Any) -> Any:  # noqa: N802 - Hydra's name
        self._functions_around += 1
        try:
            return super().visitFunction(ctx)
        finally:
            self._functions_around -= 1

    def visitPrimitive(self, ctx: Any) -> Any:  # noqa: N802 - Hydra's name
        value = super().visitPrimitive(ctx)
        if isinstance(value, bool | int | float) and not self._functions_around:
            return _Typed(value, ctx.getText().strip())
        return value

    def visitDictKey(self, ctx: Any) -> Any:  # noqa: N802 - Hydra's name
        name = super().visitDictKey(ctx)
        return ctx.getText().strip() if isinstance(name, bool | int | float) else name


class _Parser(OverridesParser):
    """Hydra's parser with our visitor, which `parse_rule` of Hydra 1.3 has no argument for."""

    def parse_rule(self, s: str, rule_name: str) -> Any:
        assert rule_name == "override", f"no other rule is read here: {rule_name}"
        errors = HydraErrorListener()
        lexer = OverrideLexer(InputStream(s))
        parser = OverrideParser(CommonTokenStream(lexer))
        for reader in (lexer, parser):
            reader.removeErrorListeners()
            reader.addErrorListener(errors)
        found: Any = _Visitor(self.functions).visit(parser.override())
        found.input_line = s
        found.validate()
        return found


def parsed(text: str) -> tuple[Override, Any]:
    """Parse an argument: Hydra's override, and its value with all texts as they were typed.

    Raises:
        HydraException: it is not of Hydra's grammar.
        RecursionError: brackets are nested too deeply.
    """
    override = _Parser(functions=create_functions()).parse_override(text)
    return override, _settled(override.key_or_group, override.value())


def takes_text(key: str) -> bool:
    """Whether a key, an entry of a mapping or a key of a pipeline's stage takes text."""
    name = _own_name(key)
    return (
        name in text_keys()
        or name.startswith(tuple(f"{mapping}." for mapping in text_mappings()))
        or _OF_A_SOURCE.fullmatch(name) is not None
    )


def takes_texts(key: str) -> bool:
    """Whether the value of a key is text, or a list or mapping of texts."""
    name = _own_name(key)
    return takes_text(key) or name in _text_lists() or name in text_mappings()


def _own_name(key: str) -> str:
    found = _OF_A_STAGE.fullmatch(key)
    return found[1] if found else key


@functools.cache
def _text_lists() -> frozenset[str]:
    return frozenset(name for name, key in all_keys().items() if key.type == list[str])


def _settled(name: str, value: Any) -> Any:
    """The value of the key `name`, with text where the key takes text, and numbers elsewhere."""
    if isinstance(value, _Typed):
        return value.text if takes_text(name) else value.value
    if isinstance(value, dict):
        return {inner: _settled(f"{name}.{inner}", item) for inner, item in value.items()}
    if isinstance(value, list):
        has_texts = _own_name(name) in _text_lists()
        return [
            item.text if has_texts and isinstance(item, _Typed) else _settled("", item)
            for item in value
        ]
    return value
