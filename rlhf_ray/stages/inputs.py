"""Checks that the inputs of a stage exist; messages name the stage that makes them."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import ONE_MODEL_STAGES

_FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_COMMAND = "python -m rlhf_ray.main"
# What a later stage learns from, by the layout that stage=prepare_data writes.
_ROWS = {
    "pretrain": "raw texts",
    "sft": "demonstrations",
    "reward_model": "preferences",
    "preference": "preferences (with preference.loss=kto, feedback)",
}


def check_inputs(config: Config, *, made_in: Path | None = None) -> None:
    """Refuse a local folder or file that is not there before anything is read.

    Args:
        made_in: see `check_models`.

    Raises:
        RequestError: names what is missing, and the command that makes it.
    """
    check_models(config, made_in=made_in)
    stage = config.stage.name
    for key, path in (
        ("examples.path", config.examples.path),
        ("examples.eval_path", config.examples.eval_path),
    ):
        if _is_missing(path) and not is_made_later(path, made_in):
            raise RequestError(
                f"{key} is {path!r}: there is no such file. stage={stage} learns from "
                f"{_ROWS[stage]}; stage=prepare_data makes such files: {_COMMAND} "
                f"stage=prepare_data output_dir=FOLDER ..."
            )


def check_models(config: Config, *, made_in: Path | None = None) -> None:
    """Refuse the missing local folder of a model, for any role that the stage starts.

    Args:
        made_in: folder in which an earlier stage of a pipeline may still make it.

    Raises:
        RequestError: names what is missing, and the command that makes it.
    """
    # The stages that serve or rewrite one model read no other.
    is_alone = config.is_fit or config.stage.name in ONE_MODEL_STAGES
    evaluated = config.evaluation.models if config.is_evaluation else {}
    reads_model = not config.is_evaluation and config.stage.name != "serve_reward"
    stage = "rl" if config.stage.name == "plan" else config.stage.name
    maker = "pretrain" if config.is_fit else "sft"
    # Key, value, the stage that makes such a model, and whether the run reads it.
    models = [
        ("model.path", config.model.path, maker, reads_model),
        *((f"evaluation.models.{name}", path, "rl", True) for name, path in evaluated.items()),
        ("critic.path", config.critic.path, "reward_model", not is_alone and config.needs_critic),
        ("reference.path", config.reference.path, "sft", not is_alone and config.needs_reference),
        (
            "reward.model.path",
            config.reward.model.path,
            "reward_model",
            not is_alone and config.needs_reward_model,
        ),
    ]
    for key, path, made_by, is_read in models:
        if is_read and _is_missing(path) and not is_made_later(path, made_in):
            needs = "evaluates models" if config.is_evaluation else "starts from a model"
            rows = "data.path" if made_by == "rl" else "examples.path"
            raise RequestError(
                f"{key} is {path!r}: there is no such folder. stage={stage} {needs}; "
                f"stage={made_by} makes one: {_COMMAND} stage={made_by} model.path=... {rows}=... "
                f"output_dir=FOLDER, and then {key}=FOLDER/model"
            )


def check_warmup(warmup: int, num_steps: int) -> None:
    """Refuse a warm-up that is as long as the run: the peak learning rate would not be reached.

    Raises:
        RequestError: says how many steps there are.
    """
    if warmup >= num_steps and warmup:
        raise RequestError(
            f"training.warmup_steps={warmup}: the whole run has only {num_steps} optimiser steps, "
            f"so that the peak learning rate would never be reached; lower it to at most "
            f"{num_steps - 1}, or raise fit.num_epochs or fit.max_steps"
        )


def is_made_later(path: str | None, made_in: Path | None) -> bool:
    """Whether the path is missing now, in a folder where an earlier stage writes.

    Args:
        made_in: that folder; None without earlier stages.
    """
    if made_in is None or not path:
        return False
    place = Path(path).expanduser().absolute()
    return made_in.absolute() in place.parents and not place.exists()


def _is_missing(path: str | None) -> bool:
    return bool(path) and _is_local(path) and not Path(path).expanduser().exists()


def _is_local(path: str) -> bool:
    """It names a place on this machine, and not a hub data set or an import path."""
    is_rooted = path.startswith(("/", "./", "../", "~"))
    return is_rooted or path.endswith((*_FILE_ENDINGS, "/model")) or path.count("/") > 1
