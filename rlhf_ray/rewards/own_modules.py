"""The user's own modules that a reward function imports, found without running any of them.

The source is read for its `import` statements, also those inside of functions, and so are the
modules that it finds. Modules of the standard library and of installed packages are left out, but
not those of the package that the function itself is in. What a function imports by a name that it
computes, or reads as a file, is not found.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from rlhf_ray.rewards.signatures import parse_source

# More than any package of rewards; a checkout of a framework on PYTHONPATH may have thousands.
_MAX_FILES = 1000
_LIBRARIES = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib")
)
_INSTALLED = ("site-packages", "dist-packages")


def own_modules(file: Path, module: str = "") -> list[Path]:
    """The files of the user's own modules that a file imports, directly or through others.

    Args:
        module: dotted name of the file's module; "" for one that is named by its path, whose
            imports search its folder too.
    """
    file = file.resolve()
    package = module.partition(".")[0]
    folders = () if module else (str(file.parent),)
    found: dict[Path, None] = {file: None}
    waiting = [file]
    while waiting and len(found) < _MAX_FILES:
        for name, origin in _imported(waiting.pop(), folders):
            is_own = name in (None, package) or not _is_installed(origin)
            if is_own and origin not in found:
                found[origin] = None
                waiting.append(origin)
    return [origin for origin in found if origin != file]


def _is_installed(origin: Path) -> bool:
    """Whether a file belongs to Python or to an installed package, this one included."""
    own = Path(__file__).resolve().parents[1]
    roots = (*_LIBRARIES, own)
    is_below = any(root == parent for root in roots for parent in origin.parents)
    return is_below or any(part in _INSTALLED for part in origin.parts)


def _imported(file: Path, folders: tuple[str, ...]) -> Iterator[tuple[str | None, Path]]:
    """The first part of the name, and the file, of every module that a file imports.

    A module of the same package that is imported by dots has None for a name.
    """
    try:
        tree = parse_source(file.read_text(encoding="utf-8"), str(file))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return  # The check of the function, or its import, says what is wrong.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _absolute(alias.name, folders)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            # A name after `import` may be a module, too.
            names = [base, *(".".join(filter(None, (base, one.name))) for one in node.names)]
            for name in names:
                yield from (
                    _relative(name, file, node.level) if node.level else _absolute(name, folders)
                )


def _absolute(name: str, folders: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    first, *rest = name.split(".")
    for spec in (_top(first), PathFinder.find_spec(first, folders) if folders else None):
        found = spec
        yield from _origin(first, found)
        for depth in range(len(rest)):
            if found is None or found.submodule_search_locations is None:
                break
            dotted = ".".join((first, *rest[: depth + 1]))
            found = PathFinder.find_spec(dotted, found.submodule_search_locations)
            yield from _origin(first, found)


def _top(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if name else None
    except (ImportError, ValueError, AttributeError):  # `__main__`, and others without a spec.
        return None


def _origin(first: str, spec: ModuleSpec | None) -> Iterator[tuple[str, Path]]:
    if spec is not None and spec.has_location and (spec.origin or "").endswith(".py"):
        yield first, Path(str(spec.origin)).resolve()


def _relative(name: str, file: Path, level: int) -> Iterator[tuple[None, Path]]:
    """A module in the package of the file, `level` dots up."""
    folder = file.parents[level - 1] if level <= len(file.parents) else file.parent
    place = folder.joinpath(*name.split(".")) if name else folder
    for candidate in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
        if candidate.is_file():
            yield None, candidate.resolve()
