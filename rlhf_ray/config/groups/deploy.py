"""Deployment: serving, chat, compression and export of models."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_ray.config.setting import setting

# Addresses that only processes of the same machine can reach.
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


# Roles of OpenAI's chats.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass
class ServeLimitsConfig:
    """Limits of single requests and connections; a request beyond them is refused.

    `stage=serve` reads all but `responses`. `stage=serve_reward` reads `prompt_characters`,
    `responses`, and the limits of connections.
    """

    prompt_characters: int | None = setting(
        None,
        "Longest text of a prompt, checked before it is tokenised; null takes 16 characters per "
        "token of the model's context. All prompts of a request together may have a million "
        "characters, or this many if it is more.",
        unit="characters",
        minimum=1,
    )
    prompt_parts: int = setting(
        16384,
        "Most parts of a prompt: messages, pieces of their content, tools and their parameters, "
        "each with all objects and lists in it.",
        minimum=1,
    )
    answers: int = setting(
        128,
        "Most answers to one request: prompts times `n`. Each counts as a request in flight.",
        minimum=1,
    )
    responses: int = setting(
        1024, "Most responses that one request to stage=serve_reward may score.", minimum=1
    )
    field_characters: int = setting(
        65536,
        "Largest value of any other field, such as a grammar or a JSON schema.",
        unit="characters",
        minimum=1,
    )
    field_items: int = setting(
        4096,
        "Most items in the value of any other field, such as stop strings or logit_bias.",
        minimum=1,
    )
    client_s: float = setting(
        60.0,
        "Longest wait for a client: for the whole head of its request, for the whole body, and for "
        "a client that does not read its answer.",
        unit="seconds",
        above=0,
    )
    idle_s: int = setting(
        30, "Time after which an idle connection is closed.", unit="seconds", minimum=1
    )
    answer_s: float = setting(
        3600.0, "Longest time of one answer, with its wait.", unit="seconds", above=0
    )
    connections: int = setting(
        2048,
        "Most open connections. At the limit the longest idle one is closed for a new one; if "
        "none is idle, the new one gets status 503.",
        minimum=1,
    )


@dataclass
class ServeConfig:
    """Services of `stage=serve` and `stage=serve_reward`.

    Both stages read the first four keys, `max_requests_under_way` and `limits`; only `stage=serve`
    reads the others.
    """

    host: str = setting("127.0.0.1", "Address to listen at.")
    port: int = setting(8000, "Port; 0 takes a free one.", minimum=0, maximum=65535)
    token_variable: str | None = setting(
        None,
        "Name of the environment variable with the API key (bearer token) that requests must "
        "carry; null requires no key and is allowed only for an address of this machine.",
    )
    max_request_bytes: int = setting(
        16 * 1024 * 1024,
        "Largest request; larger requests are refused.",
        unit="bytes",
        minimum=1024,
    )
    model_name: str | None = setting(
        None,
        "Name of the model in requests; null takes the name of its folder, or of the run's folder "
        "if the model's is called `model`.",
    )
    backend: str = setting(
        "local",
        "Placement of replicas: local, on this machine; ray_serve, on the nodes of a Ray cluster.",
        choices=("local", "ray_serve"),
    )
    replicas: int = setting(1, "vLLM servers that share the requests.", minimum=1)
    max_replicas: int | None = setting(
        None,
        "Most replicas, with serve.backend=ray_serve; null always runs serve.replicas.",
        minimum=1,
    )
    requests_per_replica: int = setting(
        32, "Requests in flight per replica that autoscaling aims at.", minimum=1
    )
    max_model_tokens: int | None = setting(
        None,
        "Longest prompt plus answer; null takes the model's limit.",
        unit="tokens",
        minimum=1,
    )
    max_requests_under_way: int = setting(
        1024,
        "Most requests in flight; the service asks clients to retry further ones later. A request "
        "for several answers counts as so many.",
        minimum=1,
    )
    health_every_s: float = setting(
        2.0, "Time between two health checks of a replica.", unit="seconds", above=0
    )
    health_timeout_s: float = setting(
        30.0,
        "A replica that does not answer health checks this long is restarted.",
        unit="seconds",
        above=0,
    )
    stall_s: float = setting(
        120.0,
        "A replica whose engine makes no progress this long, with requests in flight, is "
        "restarted.",
        unit="seconds",
        above=0,
    )
    max_restarts: int = setting(
        5,
        "Most restarts of a replica within serve.restart_window_s; after that it stays down.",
        minimum=0,
    )
    restart_window_s: float = setting(
        600.0, "Time window of serve.max_restarts.", unit="seconds", above=0
    )
    roles: list[str] = setting(
        list(_ROLES),
        "Roles that a message may have; add one that the model's chat template knows.",
    )
    limits: ServeLimitsConfig = field(default_factory=ServeLimitsConfig)

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can reach the service."""
        return self.host in LOCAL_HOSTS


METHODS = (
    "int8",
    "int4",
    "int8_activations",
    "magnitude",
    "magnitude_2_4",
    "wanda",
    "wanda_2_4",
)


@dataclass
class CompressConfig:
    """Compression of the model at `model.path`: methods and their settings."""

    methods: list[str] = setting(
        ["int8", "int4", "int8_activations", "wanda", "wanda_2_4"],
        "Methods: int8, 8-bit weights, rounded to nearest; int4, 4-bit weights by GPTQ; "
        "int8_activations, 8-bit weights and activations by SmoothQuant and GPTQ; magnitude and "
        "wanda, pruning of the smallest weights or of those with the least effect on the "
        "activations; magnitude_2_4 and wanda_2_4, pruning of two in every four weights.",
    )
    python: str = setting(
        ".venv-compress/bin/python",
        "Python interpreter with LLM Compressor; launch/setup_compress.sh installs it.",
    )
    sparsity: float = setting(
        0.5, "Share of the weights that magnitude and wanda set to zero.", above=0, below=1
    )
    smoothing: float = setting(
        0.8,
        "SmoothQuant's strength: how much of the activations' range moves into the weights.",
        minimum=0,
        maximum=1,
    )
    ignore: list[str] = setting(
        ["lm_head"], "Layers to leave unchanged; prefix regular expressions with `re:`."
    )
    calibration_prompts: int = setting(
        128, "Prompts of `data` to calibrate on.", unit="prompts", minimum=1
    )
    timeout_s: float = setting(
        3600.0,
        "Time limit of all methods together, and of each engine test.",
        unit="seconds",
        above=0,
    )


@dataclass
class ChatConfig:
    """`stage=chat`: the models to chat with, and their sampling."""

    url: str | None = setting(
        None,
        "OpenAI-compatible endpoint, such as one of stage=serve; null serves model.path on this "
        "machine.",
    )
    model: str | None = setting(
        None, "Name of the model at chat.url; null takes the first that the endpoint lists."
    )
    token_variable: str | None = setting(
        None, "Name of the environment variable with the API key of chat.url and chat.compare_url."
    )
    compare_url: str | None = setting(
        None, "Endpoint of a second model, for /compare; may equal chat.url."
    )
    compare_model: str | None = setting(
        None, "Name of the model at chat.compare_url; null takes the first that is listed."
    )
    compare_path: str | None = setting(
        None, "Folder or hub name of a second model, served on this machine, for /compare."
    )
    system: str | None = setting(None, "System message at the start of the chat.")
    max_tokens: int = setting(256, "Longest answer.", unit="tokens", minimum=1)
    temperature: float = setting(
        0.7, "Sampling temperature; 0 takes the most likely token.", minimum=0, maximum=2
    )
    top_p: float = setting(1.0, "Nucleus sampling; 1 is off.", above=0, maximum=1)
    timeout_s: float = setting(120.0, "Longest wait for the next token.", unit="seconds", above=0)


@dataclass
class ExportConfig:
    """Export of the model at `model.path`, with a model card, to `output_dir/model`."""

    name: str | None = setting(
        None, "Title of the model card; null takes the names of the base model and of the stage."
    )
    licence: str | None = setting(
        None,
        "Licence of the weights, as a hub identifier: apache-2.0, mit, other, ... Any text is "
        "taken; one that is no SPDX identifier is said.",
    )
    language: list[str] = setting([], "Languages of the model, as ISO 639-1 codes.")
    base_model: str | None = setting(
        None, "Model that training started from; null takes model.path of the run."
    )
    run_dir: str | None = setting(
        None,
        "Output folder of the training run, for data, recipe and metrics in the card; null takes "
        "the parent folder of model.path.",
    )
    evaluation_dir: str | None = setting(
        None, "Output folder of a stage=evaluate run; its table goes into the card."
    )
    dtype: str = setting(
        "auto",
        "Number format of the weights; auto keeps the format.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_shard_gb: float = setting(5.0, "Largest file of weights.", unit="GB", above=0)
