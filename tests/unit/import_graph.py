"""The import graph of a package: modules, folders and their circles."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file; read once for all checks."""
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def module_name(file: Path, package: Path) -> str:
    """The dotted name of a file of `package`; a folder has the name of its `__init__.py`."""
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_graph(package: Path) -> dict[str, set[str]]:
    """Each module to the modules of the package that it imports, at the top or in a function."""
    files = {module_name(file, package): file for file in package.rglob("*.py")}
    return {name: imported_modules(parsed(file), files) - {name} for name, file in files.items()}


def imported_modules(tree: ast.Module, known: Mapping[str, Path]) -> set[str]:
    """Those of the known modules that a file imports; `from a import b` may mean module `a.b`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found & set(known)


def sibling_graphs(graph: Graph, folders: set[str]) -> dict[str, dict[str, set[str]]]:
    """Each folder to the graph of its sub-folders.

    A sub-folder imports a sibling if any module below it imports any module below the sibling.
    Modules that lie directly in the folder are no part of its graph.

    Args:
        folders: dotted names of those modules that are folders.
    """
    graphs: dict[str, dict[str, set[str]]] = {}
    for folder in folders:
        parent, _, _ = folder.rpartition(".")
        if parent:
            graphs.setdefault(parent, {})[folder] = set()
    for module, imported in graph.items():
        for other in imported:
            parent, mine, theirs = _where_they_part(module, other)
            siblings = graphs.get(parent, {})
            if mine in siblings and theirs in siblings:
                siblings[mine].add(theirs)
    return graphs


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node, sorted."""
    reached = {node: _reachable(graph, node) for node in graph}
    found = {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in graph
        if node in reached[node]
    }
    return sorted(list(circle) for circle in found if len(circle) > 1)


def _where_they_part(one: str, other: str) -> tuple[str, str, str]:
    """The deepest common folder of two modules, and the child of it that leads to each."""
    first, second = one.split("."), other.split(".")
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return ".".join(first[:same]), ".".join(first[: same + 1]), ".".join(second[: same + 1])


def _reachable(graph: Graph, start: str) -> set[str]:
    """Every node that a path of at least one edge leads to."""
    seen: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += graph[node]
    return seen
