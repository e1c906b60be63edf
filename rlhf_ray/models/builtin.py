"""Built-in models, made on first use: `model.path=builtin:NAME`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.models.folder import Report, make_once, silent
from rlhf_ray.models.location import BUILTIN_PREFIX

# A warm-up takes under a minute on 2 cores; this allows for machines that are 15 times slower.
_LOCK_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltinModel:
    """A built-in model and the function that makes it.

    Attributes:
        about: one line for the documentation.
        version: of the model; every version has its own folder in the cache.
        make: writes the model to a folder, given the seed.
    """

    about: str
    version: int
    make: Callable[[Path, int, Report], None]


def _make_arithmetic(folder: Path, seed: int, report: Report) -> None:
    # Imported here, so that the table can be read without loading torch.
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
    """Look up the built-in model that `path` names.

    Raises:
        RequestError: there is no such model.
    """
    name = path.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_MODELS:
        close = difflib.get_close_matches(name, BUILTIN_MODELS, n=1)
        hint = f"did you mean {BUILTIN_PREFIX}{close[0]}? " if close else ""
        raise RequestError(
            f"model.path is {path!r}: there is no built-in model {name!r}; "
            f"{there_are(hint, sorted(BUILTIN_MODELS))}"
        )
    return BUILTIN_MODELS[name]


def builtin_folder(path: str, *, seed: int) -> Path:
    """The folder of `builtin:NAME`, which is there once a run has made the model.

    Raises:
        RequestError: there is no such model.
    """
    name = path.removeprefix(BUILTIN_PREFIX)
    return models_cache() / f"{name}-seed{seed}-v{check_builtin(path).version}"


def resolve_model_path(path: str, *, seed: int, report: Report = silent) -> str:
    """The folder of `builtin:NAME`, made if it is not in the cache yet; other paths unchanged.

    The cache is under XDG_CACHE_HOME (or ~/.cache). Workers on other nodes read the same folder, so
    that a cluster of several nodes needs the cache on a shared file system.

    Args:
        seed: for the initial weights and the order of the training rows.
        report: receives one line of progress at a time.

    Raises:
        RequestError: no such built-in model.
        TimeoutError: another process is making the same model and does not finish.
    """
    if not is_builtin(path):
        return path
    model, folder = check_builtin(path), builtin_folder(path, seed=seed)

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
    """Folder of the built-in models."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "rlhf_ray" / "models"
