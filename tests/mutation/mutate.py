"""Small wrong changes to a formula: the mistakes that people make."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
_COMPARE = {
    ast.Lt: ast.GtE,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
_CALLS = {"mean": "sum", "sum": "mean", "maximum": "minimum", "minimum": "maximum", "exp": "abs"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One wrong change.

    Attributes:
        file: the module's path.
        line: where.
        what: the change, in words.
        source: the whole module with it.
    """

    file: Path
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}: {self.what}"


def mutants(files: list[Path], *, number: int, seed: int) -> list[Mutant]:
    """`number` mutants drawn by `seed`, as evenly over the files as there are places."""
    generator = random.Random(f"mutants {seed}")
    piles = []
    # By name and path: sub-folders may hold files of one name, and the disk's order is no order.
    for file in sorted(files, key=lambda file: (file.name, file)):
        pile = list(_mutants_of(file))
        generator.shuffle(pile)
        piles.append(pile)
    generator.shuffle(piles)
    drawn: list[Mutant] = []
    while len(drawn) < number and any(piles):
        drawn += [pile.pop() for pile in piles if pile]
    return drawn[:number]


def _mutants_of(file: Path) -> Iterator[Mutant]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for place, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            mutated = copy.deepcopy(tree)
            target = list(ast.walk(mutated))[place]
            _replace(mutated, target, change)
            if not _is_checked(tree, node):
                yield Mutant(
                    file=file,
                    line=node.lineno,  # pyright: ignore[reportAttributeAccessIssue]
                    what=f"{what} in {ast.unparse(node)}",
                    source=ast.unparse(ast.fix_missing_locations(mutated)),
                )


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What a node can be replaced by."""
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        other = _BINARY[type(node.op)]
        yield f"{other.__name__.lower()}", ast.BinOp(node.left, other(), node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield "without the left condition", node.right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "without the sign", node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        other = _COMPARE[type(node.ops[0])]
        yield f"{other.__name__.lower()}", ast.Compare(node.left, [other()], node.comparators)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        yield from _changed_calls(node, node.func)


def _changed_calls(node: ast.Call, function: ast.Attribute) -> Iterator[tuple[str, ast.expr]]:
    if function.attr == "where" and len(node.args) == 3:
        yield "without the mask", node.args[1]
    elif function.attr in _CALLS:
        other = ast.Attribute(function.value, _CALLS[function.attr], ast.Load())
        yield f"{other.attr}", ast.Call(other, node.args, node.keywords)


def _replace(tree: ast.AST, target: ast.AST, change: ast.expr) -> None:
    class Replacer(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return change if node is target else self.generic_visit(node)

    Replacer().visit(tree)


def _is_checked(tree: ast.AST, node: ast.AST) -> bool:
    """Part of an assertion, of an error's text or of a type: no formula."""
    return any(
        node in ast.walk(outer)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.Assert | ast.Raise | ast.AnnAssign | ast.arguments | ast.JoinedStr)
    ) or _is_annotation(tree, node)


def _is_annotation(tree: ast.AST, node: ast.AST) -> bool:
    returns = [
        outer.returns
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef) and outer.returns is not None
    ]
    return any(node in ast.walk(annotation) for annotation in returns)
