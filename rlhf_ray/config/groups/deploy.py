"""Models as services."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Where only processes of the same machine can ask.
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


@dataclass
class ServeConfig:
    """`stage=serve` and `stage=serve_reward`: where a model answers, and to whom.

    The first four keys are of both, the others of `stage=serve` alone.
    """

    host: str = setting("127.0.0.1", "Address to listen at.")
    port: int = setting(8000, "Port; 0 takes a free one.", minimum=0, maximum=65535)
    token_variable: str | None = setting(
        None,
        "Name of the environment variable with the API key (bearer token) that requests must "
        "bring; null asks for none, which only an address of this machine allows.",
    )
    max_request_bytes: int = setting(
        16 * 1024 * 1024, "Longest request; a longer one is refused.", unit="bytes", minimum=1024
    )
    model_name: str | None = setting(
        None,
        "What requests call the model; null takes the name of its folder, and where that is "
        "`model`, of the run that wrote it.",
    )
    backend: str = setting(
        "local",
        "Where replicas run: local, on this machine; ray_serve, on the nodes of a Ray cluster.",
        choices=("local", "ray_serve"),
    )
    replicas: int = setting(1, "vLLM servers that share the requests.", minimum=1)
    max_replicas: int | None = setting(
        None,
        "Replicas at the busiest, with serve.backend=ray_serve; null keeps serve.replicas.",
        minimum=1,
    )
    requests_per_replica: int = setting(
        32, "Requests under way per replica that autoscaling aims at.", minimum=1
    )
    max_model_tokens: int | None = setting(
        None,
        "Longest prompt and answer together; null takes what the model can.",
        unit="tokens",
        minimum=1,
    )
    max_requests_under_way: int = setting(
        1024, "Requests at a time; a further one is told to come again.", minimum=1
    )
    health_every_s: float = setting(
        2.0, "Time between two looks at a replica.", unit="seconds", above=0
    )
    health_timeout_s: float = setting(
        30.0, "A replica that says nothing for so long is started again.", unit="seconds", above=0
    )
    stall_s: float = setting(
        120.0,
        "A replica whose engine makes no step for so long, with requests under way, is started "
        "again.",
        unit="seconds",
        above=0,
    )
    max_restarts: int = setting(
        5, "Restarts of a replica within serve.restart_window_s before it is given up.", minimum=0
    )
    restart_window_s: float = setting(600.0, "See serve.max_restarts.", unit="seconds", above=0)

    @property
    def is_local(self) -> bool:
        """Only processes of this machine can ask."""
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
    """What `model.path` is made smaller by, and with what."""

    methods: list[str] = setting(
        ["int8", "int4", "int8_activations", "wanda", "wanda_2_4"],
        "int8, weights of 8 bits, rounded to the nearest; int4, of 4 bits, by GPTQ; "
        "int8_activations, weights and activations of 8 bits, by SmoothQuant and GPTQ; "
        "magnitude and wanda, a share of the weights made zero, the smallest ones or those that "
        "matter least for the activations; magnitude_2_4 and wanda_2_4, two of each four.",
    )
    python: str = setting(
        ".venv-compress/bin/python",
        "Python with LLM Compressor; launch/setup_compress.sh makes it.",
    )
    sparsity: float = setting(
        0.5, "Share of the weights that magnitude and wanda make zero.", above=0, below=1
    )
    smoothing: float = setting(
        0.8,
        "SmoothQuant's strength: how much of the activations' range moves into the weights.",
        minimum=0,
        maximum=1,
    )
    ignore: list[str] = setting(
        ["lm_head"], "Layers that stay as they are; `re:` before a regular expression."
    )
    calibration_prompts: int = setting(
        128, "Prompts of `data` that methods look at.", unit="prompts", minimum=1
    )
    timeout_s: float = setting(
        3600.0,
        "All methods together, and likewise each test of an engine.",
        unit="seconds",
        above=0,
    )


@dataclass
class ChatConfig:
    """`stage=chat`: with whom, and how they answer."""

    url: str | None = setting(
        None,
        "OpenAI-compatible endpoint, such as the one that stage=serve names; null starts a server "
        "of model.path on this machine.",
    )
    model: str | None = setting(
        None, "Name of the model at chat.url; null takes the first that it lists."
    )
    token_variable: str | None = setting(
        None, "Name of the environment variable with the API key of chat.url and chat.compare_url."
    )
    compare_url: str | None = setting(
        None, "Endpoint of a second model, for /compare; it may be the same."
    )
    compare_model: str | None = setting(
        None, "Name of the model at chat.compare_url; null takes the first that it lists."
    )
    compare_path: str | None = setting(
        None, "Folder or hub name of a second model, served on this machine, for /compare."
    )
    system: str | None = setting(None, "Is said before everything else, as the system.")
    max_tokens: int = setting(256, "Longest answer.", unit="tokens", minimum=1)
    temperature: float = setting(0.7, "0 takes the likeliest token.", minimum=0, maximum=2)
    top_p: float = setting(1.0, "Nucleus; 1 is off.", above=0, maximum=1)
    timeout_s: float = setting(120.0, "Longest wait for the next word.", unit="seconds", above=0)


@dataclass
class ExportConfig:
    """What goes beside the weights of `model.path`, into `output_dir/model`."""

    name: str | None = setting(None, "Title of the model card; null takes that of output_dir.")
    licence: str | None = setting(
        None, "Licence of the weights, as an identifier of the hub: apache-2.0, mit, other, ..."
    )
    language: list[str] = setting([], "Languages of the model, as ISO 639-1 codes.")
    base_model: str | None = setting(
        None, "What the model was trained from; null takes model.path of the run."
    )
    run_dir: str | None = setting(
        None,
        "Output folder of the run that made the model, for data, recipe and metrics; null takes "
        "the folder that model.path is in.",
    )
    evaluation_dir: str | None = setting(
        None, "Output folder of a stage=evaluate; its table goes into the card."
    )
    dtype: str = setting(
        "auto",
        "Number format of the weights; auto leaves them as they are.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_shard_gb: float = setting(5.0, "Largest file of weights.", unit="GB", above=0)
