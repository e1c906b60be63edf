"""What a stage goes on from must be there; if not, which stage makes it, and how."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config

_FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_COMMAND = "python -m rlhf_ray.main"
# What a later stage learns from, by the layout that stage=prepare_data writes.
_ROWS = {
    "pretrain": "raw texts",
    "sft": "demonstrations",
    "reward_model": "preferences",
    "preference": "preferences (with preference.loss=kto, feedback)",
}


def check_inputs(config: Config) -> None:
    """Refuse a local folder or file that is not there before anything is read.

    Raises:
        RequestError: names what is missing, and the command that makes it.
    """
    stage = config.stage.name
    if _is_local(config.model.path) and not Path(config.model.path).expanduser().exists():
        raise RequestError(
            f"model.path is {config.model.path!r}: there is no such folder. stage={stage} starts "
            f"from a model; stage=pretrain makes one: {_COMMAND} stage=pretrain "
            f"model.path=... examples.path=... output_dir=FOLDER, and then "
            f"model.path=FOLDER/model"
        )
    for key, path in (
        ("examples.path", config.examples.path),
        ("examples.eval_path", config.examples.eval_path),
    ):
        if path and _is_local(path) and not Path(path).expanduser().exists():
            raise RequestError(
                f"{key} is {path!r}: there is no such file. stage={stage} learns from "
                f"{_ROWS[stage]}; stage=prepare_data makes such files: {_COMMAND} "
                f"stage=prepare_data output_dir=FOLDER ..."
            )


def check_warmup(config: Config, num_steps: int) -> None:
    """Refuse a warm-up that is as long as the run: the peak learning rate would not be reached.

    Raises:
        RequestError: says how many steps there are.
    """
    warmup = config.training.warmup_steps
    if warmup >= num_steps and warmup:
        raise RequestError(
            f"training.warmup_steps={warmup}: the whole run has only {num_steps} optimiser steps, "
            f"so that the peak learning rate would never be reached; lower it to at most "
            f"{num_steps - 1}, or raise fit.num_epochs or fit.max_steps"
        )


def _is_local(path: str) -> bool:
    """It names a place on this machine, and not a hub data set or an import path."""
    is_rooted = path.startswith(("/", "./", "../", "~"))
    return is_rooted or path.endswith((*_FILE_ENDINGS, "/model")) or path.count("/") > 1
