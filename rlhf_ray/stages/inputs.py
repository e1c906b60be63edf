"""Checks that the inputs of a stage exist; messages name the stage that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.errors import GatheredProblems, RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import ONE_MODEL_STAGES, SCORING_STAGES, TRAINING_STAGES
from rlhf_ray.models.builtin import is_builtin
from rlhf_ray.models.checks.present import check_tokenizer_there, check_weights_there
from rlhf_ray.models.location import check_location

_FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_COMMAND = "python -m rlhf_ray.main"
# What a later stage learns from, by the layout that stage=prepare_data writes.
_ROWS = {
    "pretrain": "raw texts",
    "sft": "demonstrations",
    "reward_model": "preferences",
    "preference": "preferences (with preference.loss=kto, feedback)",
}


def check_inputs(config: Config, *, made_in: Sequence[Path] = ()) -> None:
    """Refuse a local folder or file that is not there before anything is read.

    Args:
        made_in: see `check_models`.

    Raises:
        RequestError: names all that is missing, and the commands that make it.
    """
    problems = GatheredProblems()
    with problems.gathered():
        check_models(config, made_in=made_in)
    with problems.gathered():
        check_example_files(config, made_in=made_in)
    problems.refuse()


def check_example_files(config: Config, *, made_in: Sequence[Path]) -> None:
    """Refuse files of examples that are not there.

    Args:
        made_in: see `check_models`.

    Raises:
        RequestError: names them, and the command that makes them.
    """
    problems = GatheredProblems()
    stage = config.stage.name
    for key, path in (
        ("examples.path", config.examples.path),
        ("examples.eval_path", config.examples.eval_path),
    ):
        with problems.gathered():
            if _is_missing(path) and not is_made_later(path, made_in):
                raise RequestError(
                    f"{key} is {path!r}: there is no such file. stage={stage} learns from "
                    f"{_ROWS[stage]}; stage=prepare_data makes such files: {_COMMAND} "
                    f"stage=prepare_data output_dir=FOLDER ..."
                )
    problems.refuse()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadModel:
    """A model that a stage reads.

    Attributes:
        key: dotted name of its setting.
        maker: the stage that makes such a model.
    """

    key: str
    path: str
    maker: str


def read_models(config: Config) -> list[ReadModel]:
    """The models that the stage starts from or loads for a role, as the request names them."""
    # The stages that serve or rewrite one model read no other.
    is_alone = config.is_fit or config.stage.name in ONE_MODEL_STAGES
    has_own = not config.is_evaluation and config.stage.name != "serve_reward"
    is_remote = config.stage.name == "chat" and config.chat.url is not None
    judge = config.reward.judge
    scores = config.stage.name in SCORING_STAGES
    maker = "pretrain" if config.is_fit else "sft"
    # Key, value, the stage that makes such a model, and whether the run reads it.
    models = [
        ("model.path", config.model.path, maker, has_own and not is_remote),
        *(
            (f"evaluation.models.{name}", path, "rl", config.is_evaluation)
            for name, path in config.evaluation.models.items()
        ),
        ("critic.path", config.critic.path, "reward_model", not is_alone and config.needs_critic),
        ("reference.path", config.reference.path, "sft", not is_alone and config.needs_reference),
        (
            "reward.model.path",
            config.reward.model.path,
            "reward_model",
            not is_alone and config.needs_reward_model,
        ),
        ("reward.judge.model", judge.model, "sft", scores and judge.has_engines),
        ("chat.compare_path", config.chat.compare_path, "sft", config.stage.name == "chat"),
    ]
    return [
        ReadModel(key=key, path=path, maker=made_by)
        for key, path, made_by, is_read in models
        if is_read and path
    ]


def check_models(config: Config, *, made_in: Sequence[Path] = ()) -> None:
    """Refuse a local folder that is missing or no model, for any role that the stage starts.

    Args:
        made_in: folders of the earlier stages of a pipeline that are not finished, which make
            it: what is there now is left from before, and is not looked at.

    Raises:
        RequestError: names all that is missing or wrong, and the commands that make it.
    """
    problems = GatheredProblems()
    for model in read_models(config):
        with problems.gathered():
            if not (is_builtin(model.path) or is_made_later(model.path, made_in)):
                _check_model(config, model)
    tokenizer = config.model.tokenizer_path
    with problems.gathered():
        if tokenizer and _is_missing(tokenizer) and not is_made_later(tokenizer, made_in):
            raise RequestError(
                f"model.tokenizer_path is {tokenizer!r}: there is no such folder; name the folder "
                f"of a tokenizer or a hub name, or set it to null for the model's"
            )
        _check_tokenizer(config, made_in)
    problems.refuse()


def _check_model(config: Config, model: ReadModel) -> None:
    stage = "rl" if config.stage.name == "plan" else config.stage.name
    if _is_missing(model.path):
        needs = "evaluates models" if config.is_evaluation else "starts from a model"
        rows = "data.path" if model.maker == "rl" else "examples.path"
        raise RequestError(
            f"{model.key} is {model.path!r}: there is no such folder. stage={stage} {needs}; "
            f"stage={model.maker} makes one: {_COMMAND} stage={model.maker} model.path=... "
            f"{rows}=... output_dir=FOLDER, and then {model.key}=FOLDER/model"
        )
    # An export merges an adapter with its base.
    is_adapter = stage == "export" and (Path(model.path) / "adapter_config.json").is_file()
    check_location(model.path, model.key, needs_config=not is_adapter)
    folder = Path(model.path).expanduser()
    is_new = config.model.random_weights and model.key == "model.path"
    if folder.is_dir() and not (is_adapter or is_new):
        loads_parts = config.stage.name in TRAINING_STAGES and model.key != "reward.judge.model"
        check_weights_there(folder, model.key, any_name=not loads_parts)


def _check_tokenizer(config: Config, made_in: Sequence[Path]) -> None:
    """Refuse a folder without a tokenizer, which a model that is trained needs."""
    if config.stage.name not in TRAINING_STAGES or config.model.trust_remote_code:
        return
    own = config.model.tokenizer_path
    if is_made_later(own or config.model.path, made_in):
        return
    folder = Path(own or config.model.path).expanduser()
    if folder.is_dir() and (own or (folder / "config.json").is_file()):
        check_tokenizer_there(folder, "model.tokenizer_path" if own else "model.path")


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


def is_made_later(path: str | None, made_in: Sequence[Path]) -> bool:
    """Whether the path is in a folder that an earlier stage has yet to write.

    What is there now may be half of what a stage wrote that was killed.

    Args:
        made_in: those folders; empty without earlier stages.
    """
    if not (made_in and path):
        return False
    place = Path(path).expanduser().absolute()
    return any(folder.absolute() in (place, *place.parents) for folder in made_in)


def _is_missing(path: str | None) -> bool:
    return bool(path) and _is_local(path) and not Path(path).expanduser().exists()


def _is_local(path: str) -> bool:
    """It names a place on this machine, and not a hub data set or an import path."""
    is_rooted = path.startswith(("/", "./", "../", "~"))
    return is_rooted or path.endswith((*_FILE_ENDINGS, "/model")) or path.count("/") > 1
