"""Names that a Python source file defines and arguments that its functions accept, without a run.

The driver checks reward functions before any worker starts. Importing the user's
module in the driver could take minutes and gigabytes, so its source is parsed instead.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_PARSE_TRIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """Keyword arguments after the sample.

    Attributes:
        names: all keyword arguments.
        required: keyword arguments without a default.
        takes_any: there is a `**kwargs`.
        first: name of the parameter before them, which is the sample.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool
    first: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """One top-level name of a module.

    Attributes:
        is_async: it is an `async def`.
        signature: accepted arguments, or None if the source does not show them.
    """

    is_async: bool
    signature: Signature | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleNames:
    """Top-level names of a module; a star import may add more."""

    definitions: dict[str, Definition]
    has_star_import: bool


def parse_source(source: str, filename: str) -> ast.Module:
    # In CPython 3.11 all threads of a process share the depth counter of the parser: a
    # thread that prints a traceback at the same time makes the parse of a sound file fail
    # (python/cpython issue 106905). The next try starts with a counter of its own.
    for _ in range(_PARSE_TRIES - 1):
        try:
            return ast.parse(source, filename)
        except SystemError:
            continue
    return ast.parse(source, filename)


def read_names(source: str, filename: str) -> ModuleNames:
    """Names that a source text defines at its top level.

    Raises:
        SyntaxError: the text is not Python.
    """
    definitions: dict[str, Definition] = {}
    has_star_import = False
    for node in _top_level(parse_source(source, filename).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            has_star_import = has_star_import or "*" in names
            definitions.update((name, _unknown()) for name in names)
        elif isinstance(node, ast.ClassDef):
            definitions[node.name] = _class_definition(node)
        elif isinstance(node, _Function):
            definitions[node.name] = _function_definition(node)
        else:
            definitions.update((name, _unknown()) for name in _assigned(node))
    # A module-level __getattr__ can make any name on demand, so it counts as a star import.
    return ModuleNames(
        definitions=definitions,
        has_star_import=has_star_import or "__getattr__" in definitions,
    )


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, including those inside if, loops, with and try."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.For | ast.While):
            yield from _top_level([*node.body, *node.orelse])
        elif isinstance(node, ast.With):
            yield from _top_level(node.body)
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _top_level([*node.body, *handled, *node.orelse, *node.finalbody])


def _assigned(node: ast.stmt) -> Iterator[str]:
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _unknown() -> Definition:
    return Definition(is_async=False, signature=None)


def _function_definition(node: _Function) -> Definition:
    # A decorator may change what the function accepts.
    signature = None if node.decorator_list else _signature(node.args)
    return Definition(is_async=isinstance(node, ast.AsyncFunctionDef), signature=signature)


def _class_definition(node: ast.ClassDef) -> Definition:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return Definition(is_async=False, signature=_signature(statement.args))
    # Without __init__ the arguments are those of a base class or a decorator (dataclass).
    if node.bases or node.keywords or node.decorator_list:
        return _unknown()
    return Definition(is_async=False, signature=Signature(names=(), required=(), takes_any=False))


def _signature(arguments: ast.arguments) -> Signature:
    """Keyword arguments after the first parameter, which is `sample` or `self`."""
    positional = [*arguments.posonlyargs, *arguments.args]
    num_required = len(positional) - len(arguments.defaults)
    required = [argument.arg for argument in positional[1:num_required]]
    required += [
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    by_keyword = [*arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in by_keyword if argument not in positional[:1]]
    return Signature(
        names=tuple(names),
        required=tuple(required),
        takes_any=arguments.kwarg is not None,
        first=positional[0].arg if positional else "",
    )


# The parameter that tells the form of another library.
_FORMS = {"verl": "solution_str", "TRL": "completions"}
# Its other parameters, as values of a sample.
_VALUES = {
    "data_source": "sample.source",
    "solution_str": "sample.response",
    "ground_truth": "sample.answer",
    "extra_info": "sample.columns",
    "prompts": "[sample.prompt]",
    "completions": "[sample.response]",
    "answer": "[sample.answer]",
}


def foreign_form(name: str, signature: Signature) -> str | None:
    """The call of a function with the parameters of another library, in words; None for others."""
    given = [signature.first, *signature.names]
    for library, parameter in _FORMS.items():
        if parameter in given:
            # Others are columns of the rows, which TRL passes as lists.
            wanted = [n for n in given if n in _VALUES or n in signature.required]
            values = {n: _VALUES.get(n, f"[sample.columns[{n!r}]]") for n in wanted}
            call = ", ".join(f"{n}={value}" for n, value in values.items())
            first = "[0]" if library == "TRL" else ""
            return (
                f"it has the parameters of {library}'s reward functions, and here a function gets "
                f"one sample; write one that calls it, and name that one: "
                f"def score(sample): return {name}({call}){first}"
            )
    return None
