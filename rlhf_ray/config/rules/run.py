"""Rules of the run and of pipelines: inputs, rewards, folders, deadlines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.pipeline import read_report, read_stages
from rlhf_ray.config.groups.reward import SCORER_NAMES, SCORER_SWITCHES, SCORER_WEIGHTS
from rlhf_ray.config.objective_keys import acceptance_problem
from rlhf_ray.config.reward_entries import read_functions
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import SCORING_STAGES, STAGE_NAMES, TRAINING_STAGES

_SECRET_WORDS = frozenset(
    (
        *("AUTH", "CREDENTIAL", "CREDENTIALS", "KEY", "PASSPHRASE", "PASSWD", "PASSWORD"),
        *("SECRET", "SECRETS", "TOKEN"),
    )
)
_PASSWORD_IN_URL = re.compile(r"://[^/\s]*:[^/\s]*@")
_INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
# Written by this package in the processes of workers, whatever they had before.
_OWN_VARIABLES = frozenset(
    (
        *("CUDA_VISIBLE_DEVICES", "PYTHONPATH"),
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "VLLM_CPU_OMP_THREADS_BIND"),
        *("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS"),
    )
)
# Built-in rewards that compare with the reference answer.
_COMPARE_WITH_ANSWER = ("exact_match", "arithmetic")


def _required(config: Config) -> Iterator[str]:
    if not config.model.path:
        yield (
            "model.path is empty: name a folder, a hub model or builtin:arithmetic, or start from "
            "a recipe, as in recipe=demo"
        )
    if not config.data.path:
        yield (
            "data.path is empty: name a file, a folder, a hub data set or package.module:iterable, "
            "or start from a recipe, as in recipe=demo"
        )
    if not (config.reward.functions or config.reward.scorers):
        yield (
            "reward.functions is empty: name at least one, as in reward.functions=[exact_match] or "
            f"reward.functions=[path/file.py:function], or set {' or '.join(SCORER_SWITCHES)}"
        )


def _reward_functions(config: Config) -> Iterator[str]:
    scorers = config.reward.scorers
    if not (config.reward.functions or scorers):
        return  # The rule before this one reports it.
    try:
        functions = read_functions(config.reward.functions, scorers)
    except ValueError as error:
        yield str(error)
        return
    compared = [f.path for f in functions if f.path in _COMPARE_WITH_ANSWER]
    if compared and config.data.answer_column is None:
        yield (
            f"data.answer_column=null: the reward {compared[0]} compares with the reference "
            f"answer; name the column that has it"
        )


def _folders(config: Config) -> Iterator[str]:
    for key, value in (("output_dir", config.output_dir), ("resume", config.resume)):
        if not value.strip():
            yield f"{key} is empty: name a folder" + (
                ", or auto or never" if key == "resume" else ""
            )
        elif "://" in value:
            yield f"{key}={value}: is not a folder; name a folder that every node can reach"


def _accepted(config: Config) -> Iterator[str]:
    for entry in config.checkpoint.accept_changes:
        if problem := acceptance_problem(entry):
            yield f"checkpoint.accept_changes: {problem}"


def _template_time(config: Config) -> Iterator[str]:
    time = config.model.template_time
    if time is None:
        return
    try:
        datetime.fromisoformat(time)
    except ValueError:
        yield (
            f"model.template_time={time}: is no time; write it as in 2026-01-31T12:00:00, or leave "
            f"it null for the start of the run"
        )


def _deadlines(config: Config) -> Iterator[str]:
    deadlines = config.deadlines
    if deadlines.request_s > deadlines.generate_s:
        yield (
            f"deadlines.request_s={deadlines.request_s}: must be at most "
            f"deadlines.generate_s={deadlines.generate_s}, or a request could never be retried; "
            f"lower request_s or raise generate_s"
        )
    if config.reward.timeout_s > deadlines.generate_s:
        yield (
            f"reward.timeout_s={config.reward.timeout_s}: is more than the time for a whole batch "
            f"(deadlines.generate_s={deadlines.generate_s}); lower timeout_s or raise generate_s"
        )


def _collectives(config: Config) -> Iterator[str]:
    deadlines = config.deadlines
    limit = deadlines.collective_s
    if limit is not None and limit >= deadlines.update_s:
        yield (
            f"deadlines.collective_s={limit:g}: must be below deadlines.update_s="
            f"{deadlines.update_s:g}, or the driver ends the run before a rank says which "
            f"operation it waits in; lower collective_s or raise update_s"
        )


def _environment(config: Config) -> Iterator[str]:
    placement = config.placement
    for name, value in placement.env.items():
        key = f"placement.env.{name}"
        parts = set(name.upper().split("_"))
        if problem := _name_problem(name):
            yield f"{key}: {problem}"
        elif parts & _SECRET_WORDS or _PASSWORD_IN_URL.search(value):
            yield (
                f"{key}: looks like a secret, and config.yaml would show it. Set the variable "
                f"where the run is started, and name it in placement.env_from_driver=[{name}]"
            )
    for name in placement.env_from_driver:
        key = f"placement.env_from_driver: {name}"
        if problem := _name_problem(name):
            yield f"{key}: {problem}"
        elif name in placement.env:
            yield f"{key}: is in placement.env, too; leave one of them"
        elif name not in os.environ:
            yield f"{key}: is not set here; export it where the run is started"
    interface = placement.network_interface
    if interface is None:
        return
    if not interface or set(interface) & set(" ,=^:/"):
        yield f"placement.network_interface={interface!r}: name one interface, such as ib0"
    for name in (*placement.env, *placement.env_from_driver):
        if name in _INTERFACE_VARIABLES:
            yield (
                f"placement.network_interface={interface}: sets {name}, which placement.env or "
                f"env_from_driver sets, too; leave one of them"
            )


def _name_problem(name: str) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return "is no name of an environment variable"
    if name in _OWN_VARIABLES or name.startswith("RAY_"):
        return "a run sets it itself, by its other keys; remove it"
    return None


_TRAINING_RUN_RULES: tuple[Rule, ...] = (
    Rule(
        about="`model.path` and `data.path` are set, and so is `reward.functions` or one of "
        f"{', '.join(f'`{key}`' for key in SCORER_SWITCHES)}.",
        keys=("model.path", "data.path", "reward.functions", *SCORER_SWITCHES),
        problems=_required,
    ),
    Rule(
        about="Entries of `reward.functions` are well-formed; all parts of the reward have "
        "different names, and at least one has a weight other than 0; built-in rewards that "
        "compare with an answer need `data.answer_column`.",
        keys=(
            "reward.functions",
            *SCORER_SWITCHES,
            *SCORER_NAMES,
            *SCORER_WEIGHTS,
            "data.answer_column",
        ),
        problems=_reward_functions,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`output_dir` and `resume` are folders, not URLs.",
        keys=("output_dir", "resume"),
        problems=_folders,
        stages=STAGE_NAMES,
    ),
    Rule(
        about="`checkpoint.accept_changes` names keys or groups of keys that decide what is "
        "optimised: a resumed run refuses no others.",
        keys=("checkpoint.accept_changes",),
        problems=_accepted,
        stages=TRAINING_STAGES,
    ),
    Rule(
        about="`model.template_time` is a time in ISO 8601.",
        keys=("model.template_time",),
        problems=_template_time,
        stages=STAGE_NAMES,
    ),
    Rule(
        about="`deadlines.request_s` and `reward.timeout_s` are at most `deadlines.generate_s`.",
        keys=("deadlines.request_s", "deadlines.generate_s", "reward.timeout_s"),
        problems=_deadlines,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`deadlines.collective_s` is below `deadlines.update_s`.",
        keys=("deadlines.collective_s", "deadlines.update_s"),
        problems=_collectives,
        stages=TRAINING_STAGES,
    ),
    Rule(
        about="`placement.env` has no secrets, and no variables that a run sets itself; those of "
        "`placement.env_from_driver` are set where the run is started. "
        "`placement.network_interface` is one name.",
        keys=("placement.env", "placement.env_from_driver", "placement.network_interface"),
        problems=_environment,
        stages=STAGE_NAMES,
    ),
)


def _stages(config: Config) -> Iterator[str]:
    if not config.pipeline.stages:
        yield (
            "pipeline.stages is empty: name at least one stage, or start from a recipe, as in "
            "recipe=pipeline_demo"
        )
        return
    try:
        read_stages(config.pipeline, config.output_dir)
        read_report(config.pipeline)
    except RequestError as error:
        yield str(error)


def _resume(config: Config) -> Iterator[str]:
    if config.resume not in ("auto", "never"):
        yield (
            f"resume={config.resume}: a pipeline continues where it stopped, or starts again; "
            "set resume to auto or never"
        )


_PIPELINE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`pipeline.stages` is not empty, its entries name their stage and only folders of "
        "earlier stages, and `pipeline.report` names existing stages.",
        keys=("pipeline.stages", "pipeline.report"),
        problems=_stages,
        stages=("pipeline",),
    ),
    Rule(
        about="`resume` of a pipeline is `auto` or `never`.",
        keys=("resume",),
        problems=_resume,
        stages=("pipeline",),
    ),
)

RUN_RULES: tuple[Rule, ...] = _TRAINING_RUN_RULES + _PIPELINE_RULES
