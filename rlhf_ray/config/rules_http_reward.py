"""Rules of scores that come over HTTP: who is asked, and who answers."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.addresses import address_problems
from rlhf_ray.config.groups.deploy import SERVICE_STAGES
from rlhf_ray.config.rules.rule import SCORING_STAGES, Rule
from rlhf_ray.config.run import Config

_SERVE = ("serve_reward",)


def _address(config: Config) -> Iterator[str]:
    url = config.reward.url
    if url is not None:
        yield from address_problems("reward.url", url, token_key="reward.http.token_variable")


def _deadline(config: Config) -> Iterator[str]:
    http, generate_s = config.reward.http, config.deadlines.generate_s
    if config.reward.url is not None and http.deadline_s > generate_s:
        yield (
            f"reward.http.deadline_s={http.deadline_s}: is more than the whole batch has "
            f"(deadlines.generate_s={generate_s}); lower the one or raise the other"
        )


def _served_model(config: Config) -> Iterator[str]:
    model = config.reward.model
    if model.path is None:
        yield (
            "reward.model.path=null: name the reward model to serve, such as the folder that "
            "stage=reward_model has written"
        )
    if model.num_ranks != 1 or model.zero_stage != 0:
        yield (
            f"reward.model.num_ranks={model.num_ranks}, reward.model.zero_stage="
            f"{model.zero_stage}: one process serves the whole model; set them to 1 and 0, and "
            f"start several services for more"
        )


def _token(config: Config) -> Iterator[str]:
    serve = config.serve
    if serve.token_variable is None and not serve.is_local:
        yield (
            f"serve.host={serve.host}: other machines could ask, and serve.token_variable=null "
            f"lets everybody; name an environment variable that holds a token, or set host to "
            f"127.0.0.1"
        )


HTTP_REWARD_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.url` is an address without user, password, query and fragment.",
        keys=("reward.url",),
        problems=_address,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.http.deadline_s` is at most `deadlines.generate_s`.",
        keys=("reward.url", "reward.http.deadline_s", "deadlines.generate_s"),
        problems=_deadline,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="`reward.model.path` is set; `reward.model.num_ranks` is 1 and "
        "`reward.model.zero_stage` 0.",
        keys=("reward.model.path", "reward.model.num_ranks", "reward.model.zero_stage"),
        problems=_served_model,
        stages=_SERVE,
    ),
    Rule(
        about="`serve.token_variable` is set where `serve.host` is not an address of the machine "
        "itself.",
        keys=("serve.host", "serve.token_variable"),
        problems=_token,
        stages=SERVICE_STAGES,
    ),
)
