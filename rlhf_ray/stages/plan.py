"""stage=plan, and dry_run of any stage: what a run would be, without starting anything."""

from __future__ import annotations

from rlhf_ray.cluster.resource_plan import describe, plan_resources
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.stages import pipeline, prepare_data


def run(config: Config) -> int:
    """Print configuration and plan of the chosen stage to stdout; returns exit status 0."""
    print(f"# Configuration\n{to_yaml(config)}")
    print(_PLANS.get(config.stage.name, _plan_workers)(config))
    return 0


def _plan_workers(config: Config) -> str:
    return (
        f"# Batch\n{render_rows(batch_table(config))}\n\n"
        f"# Placement: {config.placement.strategy}\n{describe(plan_resources(config))}"
    )


def _plan_evaluation(config: Config) -> str:
    models = "\n".join(f"{name}: {path}" for name, path in config.evaluation.models.items())
    return f"# Models\n{models}\n\n# Placement\n{describe(plan_resources(config))}"


def _plan_compress(config: Config) -> str:
    return f"# Forms of {config.model.path}\n{', '.join(config.compress.methods)}"


def _plan_export(config: Config) -> str:
    return f"# Export\n{config.model.path} in {config.export.dtype}, {config.export.licence}"


def _plan_prepare(config: Config) -> str:
    return f"# Sources\n{prepare_data.describe(config)}"


def _plan_pipeline(config: Config) -> str:
    return f"# Stages\n{pipeline.describe(config)}"


def _plan_chat(config: Config) -> str:
    chat, here = config.chat, f"{config.model.path}, served on this machine"
    other = chat.compare_url or chat.compare_path
    return f"# Chat\nwith {chat.url or here}" + (f", beside {other}" if other else "")


def _plan_serve(config: Config) -> str:
    serve, generation = config.serve, config.generation
    whose = f"the key in {serve.token_variable}" if serve.token_variable else "no key"
    most = f" to {serve.max_replicas}" if serve.max_replicas else ""
    ranks = generation.tensor_parallel_size
    devices = f"{ranks * generation.num_gpus:g} GPUs" if generation.num_gpus else "the CPU"
    return (
        f"# Service\n{config.model.path} in {generation.dtype}, {serve.replicas}{most} replicas "
        f"({serve.backend}), each on {devices}, at {serve.host}, port "
        f"{serve.port or 'that is free'}, with {whose}"
    )


def _plan_service(config: Config) -> str:
    serve, model = config.serve, config.reward.model
    whose = f"the token in {serve.token_variable}" if serve.token_variable else "no token"
    return (
        f"# Service\n{model.path} in {model.dtype} on {'a GPU' if model.num_gpus else 'the CPU'}, "
        f"at {serve.host}, port {serve.port or 'that is free'}, with {whose}"
    )


# Every other stage starts workers and trains.
_PLANS = {
    "chat": _plan_chat,
    "compress": _plan_compress,
    "export": _plan_export,
    "evaluate": _plan_evaluation,
    "pipeline": _plan_pipeline,
    "prepare_data": _plan_prepare,
    "serve": _plan_serve,
    "serve_reward": _plan_service,
}
