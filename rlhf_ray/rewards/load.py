"""Reward functions by name: checked in the driver without an import, loaded in the child."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig, RewardFunctionConfig, ScorerPart
from rlhf_ray.config.reward_entries import (
    BUILTIN_TARGETS,
    FunctionTarget,
    nearest,
    parse_target,
    read_functions,
)
from rlhf_ray.rewards.own_modules import own_modules
from rlhf_ray.rewards.protocol import Reward
from rlhf_ray.rewards.signatures import Definition, ModuleNames, Signature, foreign_form, read_names


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedReward:
    """A reward function that is ready to be called."""

    name: str
    weight: float
    function: Reward


def check_functions(
    functions: Sequence[Any], scorers: Sequence[ScorerPart] = ()
) -> tuple[RewardFunctionConfig, ...]:
    """Read the entries and find every function, without importing user code.

    The file or module must exist, define the name, and accept the arguments, as far as its source
    shows. Built-in rewards are constructed, so that the values of their arguments are checked too.

    Raises:
        RequestError: an entry is wrong; names the entry and the fix.
    """
    entries = read_functions(functions, scorers)
    for entry in entries:
        try:
            _check_entry(entry)
        except RequestError as error:
            raise RequestError(f"reward {entry.name!r}: {error}") from error
    return entries


def with_absolute_paths(reward: RewardConfig) -> RewardConfig:
    """Complete every entry and make every path absolute.

    Called in the driver, because a worker may run in another folder.

    Raises:
        RequestError: an entry is wrong; see `check_functions`.
    """
    entries: list[Any] = []
    for entry in check_functions(reward.functions, reward.scorers):
        target = parse_target(entry.path)
        if target.file is not None:
            path = f"{target.file.resolve()}:{target.attribute}"
            entry = replace(entry, path=path)
        entries.append(
            {
                "path": entry.path,
                "name": entry.name,
                "weight": entry.weight,
                "arguments": entry.arguments,
            }
        )
    return replace(reward, functions=entries, sandbox_read=_existing(reward.sandbox_read))


def _existing(paths: Sequence[str]) -> list[str]:
    """Absolute paths of files and folders for the sandbox."""
    found = [Path(path).expanduser().absolute() for path in paths]
    for path in found:
        if not path.exists():
            raise RequestError(f"reward.sandbox_read: {path} does not exist")
    return list(map(str, found))


def reward_code(reward: RewardConfig) -> dict[str, str]:
    """Hash the files of the reward functions that are not of this package, by path.

    So are the user's own modules that those files import; see `own_modules`.

    Raises:
        RequestError: an entry is wrong; see `check_functions`.
    """
    found: dict[str, str] = {}
    for entry in read_functions(reward.functions, reward.scorers):
        target = parse_target(entry.path)
        file = target.file if target.file is not None else _source_of_module(target.module)
        if file is None or target.module.startswith("rlhf_ray."):
            continue
        for own in (file, *own_modules(file, target.module)):
            found[str(own)] = hashlib.sha256(own.read_bytes()).hexdigest()
    return found


def load_reward(entry: RewardFunctionConfig) -> LoadedReward:
    """Import one function, or construct the class, with the entry's arguments.

    Raises:
        RequestError: the function cannot be found, is not callable, or refuses its arguments.
    """
    target = parse_target(entry.path)
    try:
        module = _load_file(target.file) if target.file else importlib.import_module(target.module)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise RequestError(
            f"reward {entry.name!r}: {target.file or target.module} cannot be imported: "
            f"{_described(error)}"
        ) from error
    if target.attribute not in vars(module) and "__getattr__" not in vars(module):
        raise RequestError(_no_such_name(entry.name, target, list(vars(module))))
    found = getattr(module, target.attribute)
    if not callable(found):
        raise RequestError(
            f"reward {entry.name!r}: {target} is a {type(found).__name__}; name a function, or a "
            "class whose instances are called with a sample"
        )
    return LoadedReward(name=entry.name, weight=entry.weight, function=_bind(entry, target, found))


def _bind(entry: RewardFunctionConfig, target: FunctionTarget, found: Any) -> Reward:
    if not isinstance(found, type):
        _refuse_async(entry.name, target, inspect.iscoroutinefunction(found))
        return cast(Reward, functools.partial(found, **entry.arguments))
    try:
        instance = found(**entry.arguments)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise RequestError(
            f"reward {entry.name!r}: {target} does not accept the arguments {entry.arguments}: "
            f"{_described(error)}"
        ) from error
    if not callable(instance):
        raise RequestError(
            f"reward {entry.name!r}: instances of {target} cannot be called; give the class a "
            "method __call__(self, sample) that returns a number"
        )
    _refuse_async(entry.name, target, inspect.iscoroutinefunction(type(instance).__call__))
    return cast(Reward, instance)


def _described(error: BaseException) -> str:
    """Describe an error of a user's code, with the line that raised it."""
    text = f"{type(error).__name__}: {error}"
    # Without the frames that call it: they say nothing about the user's code.
    ours = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in ours and not frame.filename.startswith("<frozen")
    ]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _refuse_async(name: str, target: FunctionTarget, is_async: bool) -> None:
    if is_async:
        raise RequestError(
            f"reward {name!r}: {target} is an async function, which would return no number; make "
            "it a plain function (rewards run in separate processes and may block)"
        )


def _load_file(file: Path) -> ModuleType:
    """Import a file once per process; its own imports search its folder last."""
    file = file.resolve()
    # Two files of one name are two modules, so the module's name includes a digest of the path.
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    name = f"rlhf_ray_reward_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_entry(entry: RewardFunctionConfig) -> None:
    target = parse_target(entry.path)
    # Only the checks that need no import of user code: existence, name, arguments.
    source_file = target.file if target.file is not None else _source_of_module(target.module)
    if source_file is None:
        return
    names = _read_source(source_file)
    if target.attribute not in names.definitions:
        if names.has_star_import:
            return
        raise RequestError(_no_such_name(entry.name, target, list(names.definitions)))
    definition: Definition = names.definitions[target.attribute]
    _refuse_async(entry.name, target, definition.is_async)
    if definition.signature is not None:
        _check_arguments(target, definition.signature, entry.arguments)
    if entry.path in BUILTIN_TARGETS:
        load_reward(entry)


def _check_arguments(
    target: FunctionTarget, signature: Signature, arguments: dict[str, Any]
) -> None:
    if form := foreign_form(target.attribute, signature):
        raise RequestError(f"{target}: {form}")
    for name in arguments:
        if name not in signature.names and not signature.takes_any:
            known = ", ".join(signature.names) or "none"
            raise RequestError(
                f"{target} has no argument {name!r}{nearest(name, signature.names)}; its "
                f"arguments are: {known}"
            )
    for name in signature.required:
        if name not in arguments:
            raise RequestError(
                f"{target} needs the argument {name!r}; give it under `arguments` of the entry"
            )


def _read_source(file: Path) -> ModuleNames:
    try:
        return read_names(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError as error:
        siblings = [path.name for path in file.parent.glob("*.py")]
        raise RequestError(
            f"the file {file} does not exist{nearest(file.name, siblings)} (a relative path "
            f"starts at the current folder, {Path.cwd()})"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the file {file} cannot be read: {error}") from error
    except SyntaxError as error:
        raise RequestError(f"{file}, line {error.lineno}, is not Python: {error.msg}") from error


def _source_of_module(module: str) -> Path | None:
    """Find the source file of a module without importing it; None if it has no source.

    Raises:
        RequestError: there is no such module.
    """
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        # `find_spec` of a dotted name would import the parents; searching level by level does not.
        if spec is None:
            spec = importlib.util.find_spec(name)
        else:
            spec = PathFinder.find_spec(name, spec.submodule_search_locations or [])
        if spec is None:
            raise RequestError(
                f"there is no module {name!r} in this environment; install it, put its folder "
                "on PYTHONPATH, or give the path of its file as path/file.py:function"
            )
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin) if spec.origin.endswith(".py") else None


def _no_such_name(name: str, target: FunctionTarget, names: list[str]) -> str:
    public = [known for known in names if not known.startswith("_")]
    return (
        f"{target.file or target.module} defines no {target.attribute!r}"
        f"{nearest(target.attribute, public)}; after the colon of reward {name!r} stands the name "
        "of its function"
    )
