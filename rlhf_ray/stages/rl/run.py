"""Reinforcement learning: the inputs, the roles, the loop, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rlhf_ray.cluster.runtime.session import connected, is_connected
from rlhf_ray.cluster.systems.rl import System, started_system
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.driver.fleet.accounts import ROLE_LOST, num_lost
from rlhf_ray.driver.loop import Loop, train
from rlhf_ray.driver.resume_choice import check_rows
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.run_log import NoRollouts, RolloutFiles, RunLog
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.failure_report import said_at_once
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.progress import Progress
from rlhf_ray.observe.run_report import summarize, summary_table, write_summary
from rlhf_ray.observe.spans.span_log import SpanLog
from rlhf_ray.observe.startup import StartupClock
from rlhf_ray.publish.publisher import Publisher
from rlhf_ray.rewards.first_row import try_first_rows
from rlhf_ray.stages.output import opened_output
from rlhf_ray.stages.rl.engines import make_engines
from rlhf_ray.stages.rl.evaluation import make_evaluator
from rlhf_ray.stages.rl.healing import attach, make_trained
from rlhf_ray.stages.rl.inputs import RlInputs, check_request, read_inputs
from rlhf_ray.stages.rl.parts import (
    make_checkpoints,
    make_device_sharing,
    make_early_scores,
    make_pipeline,
    make_publisher,
    make_reference_updater,
    make_rollout_files,
    make_shown_samples,
    make_stream,
    make_token_scorers,
    make_trainer,
    make_updated_scores,
    save_models,
)
from rlhf_ray.stages.rl.settings import RlSettings
from rlhf_ray.stages.rl.transport import open_transport


def run(config: Config) -> int:
    """Train a policy against rewards.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    startup = StartupClock(follows=is_connected())
    startup.done("command")
    request = check_request(config)
    with opened_output(
        Path(config.output_dir),
        to_yaml(request.config),
        display=config.observe.progress,
        num_steps=config.num_steps,
    ) as output:
        inputs = read_inputs(request, output.progress)
        prompt_sets = (inputs.prompts.prompts, inputs.held_out)
        stream = make_stream(inputs.settings, inputs.prompts)
        check_rows(inputs.resume_from, ("pipeline", "prompts"), stream.load_state_dict)
        check_rows(inputs.resume_from, ("texts",), inputs.texts.load_state_dict)
        try_first_rows(request.config.reward, prompt_sets, report=output.progress.message)
        startup.done("inputs")
        startup.show_phase = output.progress.phase
        output.progress.phase("start")
        with (
            connected(
                dashboard=config.observe.dashboard,
                deadlines=config.deadlines,
                error_log=output.folder / "error.log",
            ),
            started_system(
                inputs.roles,
                inputs.plan,
                placement=inputs.settings.placement,
                deadlines=inputs.settings.deadlines,
                startup=startup,
            ) as system,
            said_at_once(),
        ):
            _train(inputs, system, output.progress, startup)
            output.finish(_report(output.folder))
    return 0


def _train(inputs: RlInputs, system: System, progress: Progress, startup: StartupClock) -> None:
    settings = inputs.settings
    early = make_early_scores(settings, system)
    engines = make_engines(settings, system, progress.message)
    trained = make_trained(settings, system, engines)
    pipeline = make_pipeline(settings, system, engines, inputs.prompts, early)
    transport = open_transport(settings, system, engines)
    devices = make_device_sharing(settings, system)
    publisher = make_publisher(settings, system, engines, transport, devices, inputs.probe, trained)
    is_resumed, held_out = inputs.resume_from is not None, inputs.held_out
    evaluator = make_evaluator(
        *(settings, system, engines, held_out, devices, publisher, transport, trained),
        is_resumed=is_resumed,
        say=progress.message,
    )
    saver = make_checkpoints(settings, system, inputs, evaluator)
    reference_updater = make_reference_updater(settings, system)
    reference_updater.check()
    trainer = make_trainer(settings, system, inputs.texts, trained)
    state = _first_state(inputs, saver, pipeline, progress.message)
    attach(trained, trainer=trainer, saver=saver, transport=transport)
    trained.do(_prove_weights, inputs, publisher, state.step)
    startup.done("gate")

    updated = make_updated_scores(settings, system)
    rollouts = make_rollout_files(settings, system, updated)
    with _opened_log(settings, system, progress, startup, rollouts, state.step) as log:
        loop = Loop(
            pipeline=pipeline,
            token_scorers=make_token_scorers(settings, system, early),
            trainer=trainer,
            publisher=publisher,
            reference_updater=reference_updater,
            devices=devices,
            evaluator=evaluator,
            waiter=system.supervisor,
            log=log,
            checkpoints=saver,
            updated_scores=updated,
            recovery=engines,
            trained=trained,
        )
        train(loop, state, num_steps=settings.num_steps)
        engines.retire()  # An engine that dies from now on must not cost the result.
        trained.do(saver.finish)
        rollouts.flush()
    progress.phase("save")
    devices.begin_training()
    trained.do(save_models, settings, system)
    transport.close()  # After the result is safe: a failure here must not cost it.


@contextmanager
def _opened_log(
    settings: RlSettings,
    system: System,
    progress: Progress,
    startup: StartupClock,
    rollouts: RolloutFiles | NoRollouts,
    last_step: int,
) -> Iterator[RunLog]:
    """The files and the screen that every step is written to, open from `last_step` on."""
    observe, output = settings.observe, settings.output
    with (
        make_writer(observe, output, run=settings.run_name, last_step=last_step) as metrics,
        closing(SpanLog(output, system.supervisor.spans, last_step=last_step)) as spans,
    ):
        yield RunLog(
            metrics=metrics,
            progress=progress,
            rollouts=rollouts,
            spans=spans,
            samples=make_shown_samples(settings, system, progress.message),
            on_first_step=lambda: startup.finish(output, progress.message),
        )


def _first_state(
    inputs: RlInputs, saver: RunCheckpoints, pipeline: RolloutPipeline, say: Callable[[str], None]
) -> LoopState:
    """The state of the checkpoint that the run goes on from, or that of step 0."""
    if not inputs.resume_from:
        return LoopState(step=0, controllers=Controllers.start(inputs.settings.algorithm))
    folder = saver.verified(inputs.resume_from, say)
    state = saver.load(folder, pipeline, say)
    say(f"resumed after step {state.step} from {folder}")
    return state


def _prove_weights(inputs: RlInputs, publisher: Publisher, step: int) -> None:
    """Publish the weights that the run starts with, or check those that the engines loaded."""
    settings = inputs.settings
    # Adapter 0 changes nothing: every later publish then replaces one under running requests.
    # Engines that share devices with the learner have slept since their start, and forgot.
    if inputs.resume_from or settings.publishes_adapter or settings.is_colocated:
        publisher.publish(step, is_first=True)
    else:
        publisher.check_loaded(step)


def _report(output: Path) -> str:
    metrics = read_metrics(output / "metrics.jsonl")
    summary = summarize(
        metrics,
        result=output / "model",
        lost_engines=num_lost(output),
        lost_ranks=num_lost(output, ROLE_LOST),
    )
    write_summary(output, summary)
    return summary_table(summary)
