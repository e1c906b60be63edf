"""Publishing, placement, plan, checkpoints, deadlines, recovery, observation, foreign code."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# The rows of `planning.devices`, which a test compares.
DEVICE_NAMES = (
    *("a100-40g", "a100-80g", "l40s-48g", "h20-96g", "h100-80g", "h100-96g", "h200-141g"),
    *("b200-180g", "gb200-186g"),
)


@dataclass
class PublishConfig:
    """Transport of weights from the learner to the engines, and its verification."""

    lora: str = setting(
        "merged",
        "With training.lora, publish: merged, all weights with the adapter merged in; adapter, "
        "only the adapter, which the engines apply.",
        choices=("merged", "adapter"),
    )
    transport: str = setting(
        "auto",
        "Transport of the weights. object_store: buckets through Ray's object store. collective: a "
        "broadcast from learner rank 0 to all engine workers (NCCL on GPUs, Gloo on CPUs). ipc: "
        "memory that both share: a GPU's in a colocated run, the machine's on CPUs. "
        "auto: ipc if colocated, collective on GPUs or on several nodes, otherwise object_store; "
        "adapters always take object_store.",
        choices=("auto", "object_store", "collective", "ipc"),
    )
    keep_cache: bool = setting(
        False,
        "Running requests keep their key-value cache over a publish, and go on at once with keys "
        "and values of older weights; false computes them again, exactly.",
    )
    bucket_bytes: int = setting(
        128 * 1024 * 1024, "Largest bucket of packed weights.", unit="bytes", minimum=1024
    )
    probe_every: int = setting(
        1, "Publishes between two fidelity probes; 1 probes every publish.", minimum=1
    )
    probe_tolerance: float | None = setting(
        None,
        "Largest difference of log-probabilities between engine and learner that a probe "
        "accepts; null takes 1e-3 if both are float32 and 0.5 otherwise.",
        unit="nats",
        above=0,
    )
    num_probe_sequences: int = setting(4, "Sequences in the probe.", minimum=1)


@dataclass
class PlacementConfig:
    """Placement of roles on bundles of CPUs and GPUs."""

    strategy: str = setting(
        "disaggregated",
        "disaggregated: every role has separate resources; colocated: engine and learner share "
        "bundles and take turns (the hybrid engine).",
        choices=("disaggregated", "colocated"),
    )
    gpu_memory_gib: float | None = setting(
        None,
        "Memory of one GPU: a run that cannot fit is refused before it starts, with the nearest "
        "change that fits. null takes that of plan.device, and does not compare without one.",
        unit="GiB",
        above=0,
    )
    spread: bool = setting(False, "Spread the bundles of a role over nodes if possible.")
    wait_s: float = setting(
        0.0,
        "Longest wait for an autoscaler to add missing nodes; 0 refuses a cluster that is too "
        "small at once.",
        unit="seconds",
        minimum=0,
    )
    network_interface: str | None = setting(
        None,
        "Network interface of every node through which ranks meet and NCCL and gloo talk, such as "
        "ib0; null leaves the choice to them and to Ray.",
    )
    env: dict[str, str] = setting(
        {},
        "Environment variables of every worker on every node: placement.env.NCCL_IB_HCA=mlx5. The "
        "configuration file shows them, so no secrets.",
    )
    env_from_driver: list[str] = setting(
        [],
        "Names of environment variables that every worker gets with the value that they have where "
        "the run is started: [HF_TOKEN]. Values are written to no file of the run.",
    )


@dataclass
class PlanConfig:
    """Assumptions of `stage=plan`. A run on GPUs looks at `device` for the memory of one, where
    `placement.gpu_memory_gib` is null, and is refused where it cannot fit. See docs/planning.md.
    """

    device: str | None = setting(
        None,
        "GPU whose stated figures give the seconds of a step, and its memory where "
        "placement.gpu_memory_gib is null; null plans no seconds.",
        choices=DEVICE_NAMES,
    )
    suggest: bool = setting(
        True, "Where something does not fit, look for the nearest change of settings that does."
    )
    gpus_per_node: int = setting(
        8, "GPUs of one node, for the number of nodes and the host memory of each.", minimum=1
    )
    mean_prompt_tokens: int | None = setting(
        None, "Mean length of a prompt; null takes half of the longest.", unit="tokens", minimum=1
    )
    mean_response_tokens: int | None = setting(
        None, "Mean length of a response; null takes half of the longest.", unit="tokens", minimum=1
    )


@dataclass
class CheckpointConfig:
    """Checkpoints that a killed run resumes from."""

    every_steps: int = setting(
        0, "Steps between two checkpoints; 0 writes only the final model.", unit="steps", minimum=0
    )
    keep_last: int = setting(2, "Committed checkpoints to keep.", minimum=1)
    background: bool = setting(
        False,
        "Train on while a checkpoint is written: every rank copies its share of the states to host "
        "memory (12 bytes a weight, divided by the ranks) and a thread writes it. "
        "deadlines.checkpoint_s covers the writing.",
    )
    accept_changes: list[str] = setting(
        [],
        "Keys and groups that decide what is optimised and may differ from those of the checkpoint "
        "that a run goes on from: [algorithm.kl_coefficient,reward].",
    )

    @property
    def num_kept(self) -> int:
        """Checkpoints that a run may go on from, with the one that is written meanwhile."""
        return self.keep_last + self.background


@dataclass
class DeadlineConfig:
    """Time limits of the phases; a run that exceeds one ends with an error."""

    start_s: float = setting(
        600.0, "Start of all workers, with model loading.", unit="seconds", above=0
    )
    generate_s: float = setting(
        600.0, "Generation and scoring of one batch of rollouts.", unit="seconds", above=0
    )
    request_s: float = setting(
        300.0,
        "One request to an engine, before a retry on another engine. Time counts while the request "
        "runs, not while it waits for a place in the engine or for a publish.",
        unit="seconds",
        above=0,
    )
    reference_s: float = setting(
        600.0, "Reference and old log-probabilities of one batch.", unit="seconds", above=0
    )
    update_s: float = setting(
        1200.0, "One update of the learner or the critic.", unit="seconds", above=0
    )
    collective_s: float | None = setting(
        None,
        "Longest wait of a rank for the other ranks within one collective operation, after the "
        "start. It must cover what rank 0 does alone: sending a bucket of weights, writing a "
        "model. null takes 0.9 of the longest deadline of what ranks do together.",
        unit="seconds",
        above=0,
    )
    evaluate_s: float = setting(1200.0, "One pass over the held-out rows.", unit="seconds", above=0)
    publish_s: float = setting(300.0, "One publish, with its probe.", unit="seconds", above=0)
    checkpoint_s: float = setting(
        600.0, "Saving, verifying or loading one checkpoint.", unit="seconds", above=0
    )
    stop_s: float = setting(30.0, "Shutdown of the workers.", unit="seconds", above=0)
    ray_s: float = setting(
        30.0,
        "Silence of Ray's own processes (the GCS, the raylet of the driver's node) before the run "
        "ends.",
        unit="seconds",
        minimum=5,
    )


@dataclass
class RecoveryConfig:
    """Recovery from lost workers within a run. See docs/reliability.md."""

    max_restarts: int = setting(
        0,
        "Losses of each role (engines, learner, critic) that a run goes on after; the next one "
        "ends it. 0 ends it at the first. A worker is lost if its process ends or is silent.",
        minimum=0,
    )
    min_engines: int = setting(
        0,
        "Engines with weights that must be left after a loss for the run to go on. 0: an only "
        "engine is replaced, too, and the run waits for it.",
        minimum=0,
    )
    silence_s: float = setting(
        60.0,
        "Time without a sign of life after which an engine is taken for lost, and ended. Half of "
        "it: it gets no new requests. While an engine takes new weights, deadlines.publish_s holds "
        "for its vLLM process.",
        unit="seconds",
        minimum=5,
    )
    snapshot_every: int = setting(
        1,
        "With max_restarts, steps between two copies of the state of learner and critic in Ray's "
        "object store, from which they go on after a loss: 12 bytes a weight, and two copies at a "
        "time. 0 takes none: they go on from the last checkpoint, or from the start, and do all "
        "updates since then again.",
        unit="steps",
        minimum=0,
    )


@dataclass
class ObserveConfig:
    """Progress display and files for observation."""

    progress: str = setting(
        "auto",
        "Progress display; auto: live on a terminal, plain lines otherwise.",
        choices=("auto", "live", "plain", "off"),
    )
    tensorboard: bool = setting(True, "Write TensorBoard event files.")
    ray_metrics: bool = setting(True, "Export gauges to Ray's metrics endpoint.")
    rollouts: bool = setting(True, "Write every sample to rollouts/.")
    show_samples: int = setting(
        0,
        "Answers of every step to show on the terminal, with their prompts and rewards. With 1 or "
        "more, stages that learn from examples show their first example and what is learnt of it.",
        minimum=0,
        maximum=16,
    )
    rescore_every: int = setting(
        10,
        "Steps between two records of the log-probabilities that a few answers have after the "
        "update, in rollouts/: the learner scores 8 prompts once more. 0 records none.",
        unit="steps",
        minimum=0,
    )
    dashboard: bool = setting(False, "Start Ray's dashboard if the run starts a local Ray.")


@dataclass
class ForeignCodeConfig:
    """Borders of the process that runs reward functions."""

    environment: list[str] = setting(
        [],
        "Names of environment variables that reward functions see in addition to those of paths, "
        "language and threads. No token is among those (see docs/rewards.md).",
    )
    max_memory_gib: float | None = setting(
        16.0,
        "Most memory of each process of a worker's reward functions, and of all of them "
        "together; null for no limit.",
        unit="GiB",
        above=0,
    )
    max_processes: int | None = setting(
        256,
        "Most processes that a worker's reward functions have at once, their own included; null "
        "for no limit.",
        minimum=1,
    )
    max_open_files: int | None = setting(
        4096, "Most open files of each such process; null for no limit.", minimum=64
    )
    max_file_gib: float | None = setting(
        4.0, "Longest file that such a process writes; null for no limit.", unit="GiB", above=0
    )
    sandbox: str = setting(
        "none",
        "bwrap: run reward functions with bubblewrap, in a file system that they can only read, "
        "without the home folder, the network and other processes.",
        choices=("none", "bwrap"),
    )
    sandbox_network: bool = setting(False, "Let reward functions in the sandbox use the network.")
    sandbox_read: list[str] = setting(
        [],
        "Files and folders below hidden folders (home, /tmp) that reward functions in the "
        "sandbox may read all the same. Folders of their own modules are visible.",
    )
