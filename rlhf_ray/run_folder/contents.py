"""Contents of an output folder: the stage that wrote them, the results of an earlier run."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import yaml

from rlhf_ray.config.errors import RequestError
from rlhf_ray.run_folder.place import FILES, FOLDERS

ASIDE = "earlier"
# Results that a run of another kind would overwrite or mix with its own.
RESULTS = (
    "adapter",
    "best",
    "checkpoints",
    "compression.json",
    "evaluation.json",
    "metrics.jsonl",
    "model",
    "model_ema",
    "progress.json",
    "rollouts",
    "summary.json",
    "tensorboard",
)
# Of these, what a run replaces.
MODELS = ("adapter", "best", "model", "model_ema")
_EVALUATION = "evaluation"
_REPORT_OF_DATA = "report.json"
# Not results of a run, or still wanted by the next one.
_STAYS = (ASIDE, "serve.json", "progress.json")


def results_in(folder: Path) -> list[str]:
    """Names of the results that a run has left in the folder."""
    return [name for name in (*RESULTS, _REPORT_OF_DATA) if _has_something(folder / name)]


def stage_of(folder: Path, *, written: str | None) -> str | None:
    """The stage whose output the folder holds; None if it cannot be told.

    Args:
        written: the stage that the lock file names.
    """
    if written is not None:
        return written
    # Folders of releases without lock files, and of stage=prepare_data.
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    stage = values.get("stage") if isinstance(values, dict) else None
    name = stage.get("name") if isinstance(stage, dict) else None
    return name if isinstance(name, str) else None


def check_owner(folder: Path, stage: str, *, written: str | None) -> None:
    """Refuse a folder with results of another stage, or with a model from elsewhere.

    Raises:
        RequestError: names that stage and its results.
    """
    results = results_in(folder)
    there = stage_of(folder, written=written)
    models = [name for name in MODELS if name in results]
    if models and there is None:
        raise RequestError(
            f"output_dir is {str(folder)!r}, which holds {' and '.join(models)}, and no "
            f"config.yaml or lock file that tells which run wrote that; stage={stage} would delete "
            f"it: name another output_dir, or move it away"
        )
    if results and there is not None and there != stage:
        raise RequestError(
            f"output_dir is {str(folder)!r}, which holds the output of stage={there} "
            f"({', '.join(results)}); stage={stage} would overwrite a part of it: name another "
            f"output_dir, or move that output away"
        )


class MovedAside:
    """Results of an earlier run that were moved to a folder of their own, `earlier/TIME`.

    Attributes:
        place: the new folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        names = (now, *(f"{now}-{number}" for number in range(2, 100)))
        self.place = next(p for n in names if not (p := folder / ASIDE / n).exists())
        self.place.mkdir(parents=True)
        known = (*FOLDERS, *FILES, *RESULTS)
        self._names = [n for n in dict.fromkeys(known) if n not in _STAYS and _is(folder / n)]
        # The output folder of stage=evaluate, which may have the name of a run's own.
        if (folder / _EVALUATION / "config.yaml").exists():
            self._names.remove(_EVALUATION)
        for name in self._names:
            (folder / name).rename(self.place / name)

    def undo(self) -> None:
        """Put everything back that nothing new has taken the place of.

        A refused request has written its configuration and logs: the earlier ones replace them.
        """
        for name in self._names:
            there = self._folder / name
            if name == "logs":
                shutil.rmtree(there, ignore_errors=True)
            elif name == "config.yaml":
                there.unlink(missing_ok=True)
            if not _is(there):
                (self.place / name).rename(there)
        for folder in (self.place, self.place.parent):
            if not any(folder.iterdir()):
                folder.rmdir()


def _is(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _has_something(path: Path) -> bool:
    """A file with text, or a folder with entries: a run that failed at once leaves empty ones."""
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0
