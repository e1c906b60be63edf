"""Models that this project makes itself: `model.path=builtin:NAME`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.folder import Report, make_once, silent
from rlhf_ray.models.location import BUILTIN_PREFIX

# One warm-up takes well under a minute; a machine can be ten times slower than ours.
_LOCK_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltinModel:
    """How a built-in model is made.

    Attributes:
        about: one line for people.
        version: of the recipe; another version is another folder in the cache.
        make: writes the model to a folder, given the seed.
    """

    about: str
    version: int
    make: Callable[[Path, int, Report], None]


def _make_arithmetic(folder: Path, seed: int, report: Report) -> None:
    # Here, so that the table can be read without loading torch.
    from rlhf_ray.models.tiny import arithmetic as tiny_arithmetic

    tiny_arithmetic.make(folder, seed, report)


def _untrained(task: str, about: str) -> BuiltinModel:
    def make(folder: Path, seed: int, report: Report) -> None:
        from rlhf_ray.models.tiny import untrained as tiny_untrained

        tiny_untrained.make(task, folder, seed, report)

    return BuiltinModel(
        about=f"0.6 M parameters, untrained; a tokenizer for {about}", version=1, make=make
    )


BUILTIN_MODELS = {
    "arithmetic": BuiltinModel(
        about="0.6 M parameters; answers sums of two digits, right in four samples of ten",
        version=1,
        make=_make_arithmetic,
    ),
    "customer_service": _untrained("customer_service", "requests to a service desk"),
    "sentiment": _untrained("sentiment", "lines in a mood"),
    "stories": _untrained("stories", "stories of three sentences"),
    "translation": _untrained("translation", "sentences in English and German"),
}


def is_builtin(path: str) -> bool:
    """Whether `path` names a built-in model, known or not."""
    return path.startswith(BUILTIN_PREFIX)


def check_builtin(path: str) -> BuiltinModel:
    """The entry that `path` names.

    Raises:
        RequestError: there is none of that name.
    """
    name = path.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_MODELS:
        close = difflib.get_close_matches(name, BUILTIN_MODELS, n=1)
        hint = f"did you mean {BUILTIN_PREFIX}{close[0]}? " if close else ""
        raise RequestError(
            f"model.path is {path!r}: there is no built-in model {name!r}; {hint}"
            f"There are: {', '.join(sorted(BUILTIN_MODELS))}"
        )
    return BUILTIN_MODELS[name]


def resolve_model_path(path: str, *, seed: int, report: Report = silent) -> str:
    """The folder behind `builtin:NAME`, made when it is not yet in the cache; else `path`.

    The cache is under XDG_CACHE_HOME (or ~/.cache); workers on other nodes read the same
    folder, so that a cluster of several nodes needs it on a file system that they share.

    Args:
        seed: of the initial weights and of the order of the training rows.
        report: is told what happens, one line at a time.

    Raises:
        RequestError: no such built-in model.
        TimeoutError: another process makes the same model and does not end.
    """
    if not is_builtin(path):
        return path
    model = check_builtin(path)
    name = path.removeprefix(BUILTIN_PREFIX)
    folder = models_cache() / f"{name}-seed{seed}-v{model.version}"

    def make(temporary: Path) -> None:
        report(f"making {path} (once; kept in {folder})")
        model.make(temporary, seed, report)

    make_once(
        folder,
        make,
        recipe=f"{path} seed {seed} version {model.version}",
        timeout_s=_LOCK_TIMEOUT_S,
        report=report,
    )
    return str(folder)


def models_cache() -> Path:
    """Where built-in models are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "rlhf_ray" / "models"
