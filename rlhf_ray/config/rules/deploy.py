"""Rules of deployment: services, chat, compression, export."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.groups.deploy import METHODS
from rlhf_ray.config.rules.generation import (
    FIXED_ARGUMENTS,
    OWNED_ARGUMENTS,
    argument_problems,
)
from rlhf_ray.config.rules.rule import Rule, address_problems
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import SERVER_STAGES, SERVICE_STAGES

_SERVE = ("serve",)
_CHAT = ("chat",)
# Engine arguments that a run decides, and that are free for a server: it has no learner.
_FREE = (
    *("enable_lora", "max_loras", "max_lora_rank", "lora_target_modules", "max_logprobs"),
    *("override_generation_config", "generation_config", "revision", "code_revision"),
    *("tokenizer_revision", "hf_config_path", "enable_sleep_mode", "weight_transfer_config"),
    *("logprobs_mode", "logits_processors", "watermark_config", "runner", "convert"),
    *("skip_tokenizer_init", "tokens_only"),
)


def _model(config: Config) -> Iterator[str]:
    if not config.model.path:
        yield (
            "model.path is empty: name the model to serve, such as the folder `model` of a "
            "training stage, or a hub name"
        )


def _replicas(config: Config) -> Iterator[str]:
    serve = config.serve
    if serve.max_replicas is None:
        return
    if serve.backend == "local":
        yield (
            f"serve.max_replicas={serve.max_replicas}: only Ray Serve scales replicas with the "
            f"load; set serve.backend=ray_serve, or max_replicas=null and serve.replicas to a "
            f"fixed number"
        )
    elif serve.max_replicas < serve.replicas:
        yield (
            f"serve.max_replicas={serve.max_replicas}: is less than serve.replicas="
            f"{serve.replicas}, the number at the start; raise max_replicas or lower replicas"
        )


def _chat_partners(config: Config) -> Iterator[str]:
    chat = config.chat
    if chat.url is None and not config.model.path:
        yield (
            "model.path is empty, and chat.url=null: name the model to talk to, or an endpoint, "
            "as in chat.url=http://127.0.0.1:8000/v1"
        )
    if chat.compare_url is not None and chat.compare_path is not None:
        yield (
            f"chat.compare_url={chat.compare_url}, chat.compare_path={chat.compare_path}: only "
            f"one model can be compared; set one of them to null"
        )


def _chat_addresses(config: Config) -> Iterator[str]:
    for key, url in (
        ("chat.url", config.chat.url),
        ("chat.compare_url", config.chat.compare_url),
    ):
        if url is not None:
            yield from address_problems(key, url, token_key="chat.token_variable")


def _arguments(config: Config) -> Iterator[str]:
    owners = OWNED_ARGUMENTS | {"max_model_len": "serve.max_model_tokens"}
    yield from argument_problems(
        config.generation.extra_engine_args,
        {name: owner for name, owner in owners.items() if name not in _FREE},
        {name: reason for name, reason in FIXED_ARGUMENTS.items() if name not in _FREE},
    )


def _tool_parser(config: Config) -> Iterator[str]:
    given = config.generation.extra_engine_args
    parser = given.get("tool_call_parser")
    if given.get("enable_auto_tool_choice") and not parser:
        yield (
            "generation.extra_engine_args.enable_auto_tool_choice=true: set tool_call_parser, "
            "too, to the parser of the model's family, such as hermes or llama3_json"
        )
    elif parser and not given.get("enable_auto_tool_choice"):
        yield (
            f"generation.extra_engine_args.tool_call_parser={parser}: it is used only with "
            f"enable_auto_tool_choice=true there; set it, or leave the parser out"
        )


def _port(config: Config) -> Iterator[str]:
    if config.serve.backend == "ray_serve" and config.serve.port == 0:
        yield (
            "serve.port=0: Ray Serve's proxies cannot choose a free port; name one, such as 8000"
        )


def _roles(config: Config) -> Iterator[str]:
    if not config.serve.roles:
        yield (
            "serve.roles=[]: every chat would be refused; name the roles that a message may have, "
            "such as system, user and assistant"
        )


_SERVE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`serve.roles` is not empty.",
        keys=("serve.roles",),
        problems=_roles,
        stages=SERVER_STAGES,
    ),
    Rule(
        about="`model.path` is set.",
        keys=("model.path",),
        problems=_model,
        stages=_SERVE,
    ),
    Rule(
        about="`serve.max_replicas` needs `serve.backend=ray_serve`, and is at least "
        "`serve.replicas`.",
        keys=("serve.backend", "serve.replicas", "serve.max_replicas"),
        problems=_replicas,
        stages=_SERVE,
    ),
    Rule(
        about="`generation.extra_engine_args` has no argument that another key sets.",
        keys=("generation.extra_engine_args",),
        problems=_arguments,
        stages=SERVER_STAGES,
    ),
    Rule(
        about="`generation.extra_engine_args`: `enable_auto_tool_choice` and `tool_call_parser` "
        "are set together.",
        keys=("generation.extra_engine_args",),
        problems=_tool_parser,
        stages=SERVER_STAGES,
    ),
    Rule(
        about="`serve.port` is not 0 with `serve.backend=ray_serve`.",
        keys=("serve.backend", "serve.port"),
        problems=_port,
        stages=_SERVE,
    ),
    Rule(
        about="`chat.url` or `model.path` is set; at most one of `chat.compare_url` and "
        "`chat.compare_path` is set.",
        keys=("model.path", "chat.url", "chat.compare_url", "chat.compare_path"),
        problems=_chat_partners,
        stages=_CHAT,
    ),
    Rule(
        about="`chat.url` and `chat.compare_url` are addresses without user, password, query or "
        "fragment.",
        keys=("chat.url", "chat.compare_url"),
        problems=_chat_addresses,
        stages=_CHAT,
    ),
)


_COMPRESS = ("compress",)


def _methods(config: Config) -> Iterator[str]:
    methods = config.compress.methods
    if not methods:
        yield f"compress.methods=[]: name at least one of {', '.join(METHODS)}"
    for method in dict.fromkeys(methods):
        if method not in METHODS:
            yield f"compress.methods: {method!r} is unknown; choose from {', '.join(METHODS)}"
        elif methods.count(method) > 1:
            yield f"compress.methods: {method} is listed more than once; remove the repetition"


def _prompts(config: Config) -> Iterator[str]:
    if not config.data.path:
        yield (
            "data.path is empty: name the prompts to calibrate on, such as those of the training "
            "run"
        )


_COMPRESS_RULES: tuple[Rule, ...] = (
    Rule(
        about=f"`compress.methods` has at least one of {', '.join(METHODS)}, each once.",
        keys=("compress.methods",),
        problems=_methods,
        stages=_COMPRESS,
    ),
    Rule(
        about="`stage=compress`: `data.path` is not empty.",
        keys=("data.path",),
        problems=_prompts,
        stages=_COMPRESS,
    ),
)


def _licence(config: Config) -> Iterator[str]:
    if not config.export.licence:
        yield (
            "export.licence=null: name the licence of the weights by its hub identifier, as in "
            "export.licence=apache-2.0; the licence of the base model usually binds them"
        )


_EXPORT_RULES: tuple[Rule, ...] = (
    Rule(
        about="`stage=export`: `export.licence` is set.",
        keys=("export.licence",),
        problems=_licence,
        stages=("export",),
    ),
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
            f"start several services for more throughput"
        )
    for name in ("sequence_parallel_size", "tensor_parallel_size"):
        if (size := getattr(model, name)) != 1:
            yield f"reward.model.{name}={size}: one process serves the whole model; set it to 1"


def _token(config: Config) -> Iterator[str]:
    serve = config.serve
    if serve.token_variable is None and not serve.is_local:
        yield (
            f"serve.host={serve.host}: other machines can connect, and serve.token_variable=null "
            f"requires no token; name an environment variable with a token, or set host to "
            f"127.0.0.1"
        )


_SERVICE_RULES: tuple[Rule, ...] = (
    Rule(
        about="`reward.model.path` is set; `reward.model.num_ranks` and its sizes of groups are 1, "
        "and `reward.model.zero_stage` is 0.",
        keys=(
            *("reward.model.path", "reward.model.num_ranks", "reward.model.zero_stage"),
            *("reward.model.sequence_parallel_size", "reward.model.tensor_parallel_size"),
        ),
        problems=_served_model,
        stages=("serve_reward",),
    ),
    Rule(
        about="`serve.token_variable` is set unless `serve.host` is an address of this machine.",
        keys=("serve.host", "serve.token_variable"),
        problems=_token,
        stages=SERVICE_STAGES,
    ),
)

DEPLOY_RULES: tuple[Rule, ...] = _SERVICE_RULES + _SERVE_RULES + _COMPRESS_RULES + _EXPORT_RULES
