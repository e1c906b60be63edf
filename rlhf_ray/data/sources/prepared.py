"""Layout of the sets that `stage=prepare_data` writes, for the stages that read them.

OUTPUT_DIR/KIND/train.jsonl, eval.jsonl             without a split over stages
OUTPUT_DIR/{sft,reward_model,rl}/train.jsonl, ...   with one
"""

from __future__ import annotations

import shlex
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.prepare_sources import KINDS, STAGE_KINDS
from rlhf_ray.data.rows import DataError

TRAIN, EVAL, REPORT = "train.jsonl", "eval.jsonl", "report.json"


def prepared_file(folder: str | Path, stage: str, *, part: str = TRAIN) -> Path:
    """Find the file that a stage reads in an output folder of `stage=prepare_data`.

    Args:
        folder: the output folder, or the file itself.
        stage: sft, reward_model or rl; or a kind, such as text for pre-training.
        part: `TRAIN` or `EVAL`.

    Raises:
        RequestError: the file does not exist; the message has the command that makes it.
    """
    given = Path(folder).expanduser()
    if given.is_file():
        return given
    kind = STAGE_KINDS.get(stage, stage)
    for name in dict.fromkeys((stage, kind)):
        if (given / name / part).is_file():
            return given / name / part
    raise RequestError(
        f"{given} has no {kind}/{part} for the stage {stage}; stage=prepare_data makes it: "
        f"{_command(kind, given)}"
    )


def prepared_hint(path: Path) -> str:
    """End of a message about a missing file: the command, if it looks like a prepared file."""
    kinds = {**{kind: kind for kind in KINDS}, **STAGE_KINDS}
    if path.name not in (TRAIN, EVAL) or path.parent.name not in kinds:
        return ""
    command = _command(kinds[path.parent.name], path.parent.parent)
    return f". stage=prepare_data makes such files: {command}"


def refuse_prepared_folder(folder: Path, key: str) -> None:
    """Refuse the whole output folder of `stage=prepare_data`: a source is one of its files.

    Args:
        key: dotted name of the setting with the folder.

    Raises:
        DataError: the folder is such an output; names its files.
    """
    files = [str(file) for file in sorted(folder.glob(f"*/{TRAIN}"))]
    if files and (folder / REPORT).is_file():
        raise DataError(
            f"{key} is {str(folder)!r}, a folder of prepared sets; name a file in it: "
            f"{', '.join(files)}"
        )


def _command(kind: str, folder: Path) -> str:
    return (
        f"python -m rlhf_ray.main stage=prepare_data prepare.sources.NAME.path=FILE "
        f"prepare.sources.NAME.kind={kind} output_dir={shlex.quote(str(folder))}"
    )
