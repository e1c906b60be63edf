"""stage=serve: a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.config.bearer_token import BearerToken, read_token
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.generation.requirements import check_head_size
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.location import check_location
from rlhf_ray.scratch_folder import scratch_folder
from rlhf_ray.serving.local import (
    ServedModel,
    local_fleet,
    make_front,
    model_name,
)
from rlhf_ray.serving.replica import Report
from rlhf_ray.serving.server import address_of, listen, serve
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.positions import check_engine_length
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import Stage

# What a program reads to find the service; it is there from when it is ready to its end.
READY_FILE = "serve.json"
LOGS = "logs"


def run(config: Config) -> int:
    """Serve `model.path` until SIGTERM.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: model, key or port are wrong; nothing has been loaded then.
        RunFailed: the model did not start, or its servers were given up.
    """
    token = read_token("serve.token_variable", config.serve.token_variable)
    served = served_model(config, report=_say)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / READY_FILE).unlink(missing_ok=True)  # A service that was killed has left its own.
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    if config.serve.backend == "ray_serve":
        from rlhf_ray.cluster.runtime.session import connected  # Seconds of import.

        connection = connected(
            dashboard=config.observe.dashboard,
            deadlines=config.deadlines,
            error_log=output / "error.log",
        )
        _serve_on_cluster(served, token, output, connection)
    else:
        _serve_here(served, token, output)
    _say("ended")
    return 0


def served_model(config: Config, *, report: Report) -> ServedModel:
    """The model of `model.path`, whose folder was checked, and how it is served.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: there is no such model, or it does not generate.
    """
    name = model_name(config.serve.model_name, config.model.path)
    # Seconds of import, which a description of the stage does not need.
    from rlhf_ray.models.checks.chat_template import check_served_template
    from rlhf_ray.models.checks.whole_model import Use, check_weights

    check_models(config)
    path = resolve_model_path(config.model.path, seed=config.seed, report=report)
    check_location(path, "model.path", needs_config=True)
    _check_generates(path)
    model = dataclasses.replace(config.model, path=path)
    check_weights(model, Use.ENGINE)
    check_served_template(model)
    check_head_size(model, config.generation)
    if "hf_overrides" not in config.generation.extra_engine_args:
        check_engine_length(model, config.serve.max_model_tokens, key="serve.max_model_tokens")
    return ServedModel(
        name=name,
        model=model,
        generation=config.generation,
        serve=config.serve,
        start_s=config.deadlines.start_s,
        stop_s=config.deadlines.stop_s,
    )


def _serve_here(served: ServedModel, token: BearerToken | None, output: Path) -> None:
    settings = served.serve
    with ExitStack() as stack:
        listener = stack.enter_context(closing(listen(settings.host, settings.port)))
        fleet = local_fleet(
            served,
            scratch=stack.enter_context(scratch_folder()),
            logs=output / LOGS,
            num_replicas=settings.replicas,
            report=_say,
        )
        front = make_front(served, fleet, token)
        url = f"{address_of(listener)}/v1"
        stack.callback((output / READY_FILE).unlink, missing_ok=True)
        _say(f"loading {served.model.path} for {url}; logs are in {output / LOGS}")

        def when_ready() -> None:
            tell_ready(served, url, output)

        serve(
            front.application,
            listener,
            work=lambda: fleet.supervise(when_ready),
            limits=settings.limits,
            report=_say,
            drain_s=served.stop_s,
        )


def _serve_on_cluster(
    served: ServedModel,
    token: BearerToken | None,
    output: Path,
    connection: AbstractContextManager[None],
) -> None:
    # Here: seconds of import that only a cluster needs.
    from rlhf_ray.cluster.ray_serve import check_ray_serve, deployed

    check_ray_serve()
    with ExitStack() as stack:
        stack.enter_context(connection)
        _say(f"loading {served.model.path} on the cluster")
        logs = (output / LOGS).absolute()
        url, check = stack.enter_context(deployed(served, token, logs=logs))
        stack.callback((output / READY_FILE).unlink, missing_ok=True)
        tell_ready(served, f"{url}/v1", output)
        end = threading.Event()
        # `connected` raises at SIGTERM; here it is the orderly end.
        before = signal.signal(signal.SIGTERM, lambda *_: end.set())
        stack.callback(signal.signal, signal.SIGTERM, before)
        while not end.wait(served.serve.health_every_s):
            check()


def tell_ready(served: ServedModel, url: str, output: Path) -> None:
    """Say where the model answers, to people and in a file to programs."""
    variable = served.serve.token_variable
    facts: dict[str, Any] = {
        "url": url,
        "model": served.name,
        "model_path": served.model.path,
        "token_variable": variable,
        "pid": os.getpid(),
    }
    write_atomically(output / READY_FILE, json.dumps(facts, indent=2) + "\n")
    key = f" chat.token_variable={variable}" if variable else ""
    _say(
        f"ready at {url} with model {served.name}; ask it: "
        f"python -m rlhf_ray.main stage=chat chat.url={url}{key}"
    )


def _check_generates(path: str) -> None:
    """Refuse a folder whose model scores texts and writes none."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return  # A hub name: vLLM reads it.
    try:
        kinds = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise RequestError(f"model.path is {path!r}: cannot read {file}: {error}") from error
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise RequestError(
            f"model.path is {path!r}, a reward model ({', '.join(kinds)}), which writes nothing; "
            f"stage=serve_reward reward.model.path={path} serves it"
        )


def _say(line: str) -> None:
    print(line, flush=True)


def _describe(config: Config) -> str:
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


STAGE = Stage(name="serve", describe=_describe, run=run, check=check_request)
