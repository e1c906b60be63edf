"""The small groups below the root of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class PublishConfig:
    """How weights travel from the learner to the engines, and how they are proven."""

    lora: str = setting(
        "merged",
        "What travels of a policy with training.lora: merged, all weights with the adapter in "
        "them; adapter, the adapter alone, which the engines apply themselves.",
        choices=("merged", "adapter"),
    )
    transport: str = setting("object_store", "Way of the weights.", choices=("object_store",))
    bucket_bytes: int = setting(
        128 * 1024 * 1024, "Largest packed bucket in flight.", unit="bytes", minimum=1024
    )
    probe_every: int = setting(
        1, "Publishes between two fidelity probes; 1 proves every one.", minimum=1
    )
    probe_tolerance: float | None = setting(
        None,
        "Largest log-probability gap the gate lets through; null takes 1e-3 where engine and "
        "learner are float32 and 0.5 otherwise.",
        unit="nats",
        above=0,
    )
    num_probe_sequences: int = setting(4, "Sequences in the probe.", minimum=1)


@dataclass
class PlacementConfig:
    """Which roles share bundles."""

    strategy: str = setting(
        "disaggregated",
        "disaggregated: every role has resources of its own; colocated: engine and learner "
        "share bundles and take turns (the hybrid engine).",
        choices=("disaggregated", "colocated"),
    )
    spread: bool = setting(False, "Put the bundles of a role on different nodes where possible.")
    wait_s: float = setting(
        0.0,
        "How long an autoscaler may take to add missing nodes; 0 refuses a cluster that is "
        "too small at once.",
        unit="seconds",
        minimum=0,
    )


@dataclass
class CheckpointConfig:
    """When the state that a killed run resumes from is written."""

    every_steps: int = setting(
        0, "Steps between checkpoints; 0 writes none but the final model.", unit="steps", minimum=0
    )
    keep_last: int = setting(2, "Committed checkpoints to keep.", minimum=1)


@dataclass
class DeadlineConfig:
    """How long each phase may take before the run ends with an error."""

    start_s: float = setting(600.0, "Start of all workers, model loading.", unit="seconds", above=0)
    generate_s: float = setting(600.0, "One batch of rollouts, scored.", unit="seconds", above=0)
    request_s: float = setting(
        300.0, "One request to an engine before it is retried elsewhere.", unit="seconds", above=0
    )
    reference_s: float = setting(
        600.0, "Reference and old log-probabilities.", unit="seconds", above=0
    )
    update_s: float = setting(1200.0, "One update of learner or critic.", unit="seconds", above=0)
    evaluate_s: float = setting(1200.0, "One pass over the held-out rows.", unit="seconds", above=0)
    publish_s: float = setting(300.0, "One publish with its probe.", unit="seconds", above=0)
    checkpoint_s: float = setting(600.0, "One checkpoint, save or load.", unit="seconds", above=0)
    stop_s: float = setting(30.0, "Orderly end of the workers.", unit="seconds", above=0)


@dataclass
class ObserveConfig:
    """What the user sees and what is written."""

    progress: str = setting(
        "auto",
        "auto: live display on a terminal, plain lines otherwise.",
        choices=("auto", "live", "plain", "off"),
    )
    tensorboard: bool = setting(True, "Write TensorBoard event files.")
    ray_metrics: bool = setting(True, "Export gauges at Ray's metrics endpoint.")
    rollouts: bool = setting(True, "Write every sample to rollouts/.")
    dashboard: bool = setting(
        False, "Start Ray's dashboard where the run starts a local Ray of its own."
    )
