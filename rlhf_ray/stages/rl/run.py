"""Reinforcement learning: the roles, the loop, the result."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.resource_plan import describe, plan_resources
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.rl import System, started_system
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.driver.loop import Loop, LoopState, train
from rlhf_ray.driver.run_checkpoints import checkpoint_to_resume
from rlhf_ray.driver.run_log import RunLog
from rlhf_ray.driver.updates.controllers import start_controllers
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.output_capture import quiet_driver
from rlhf_ray.observe.progress import Progress, make_progress
from rlhf_ray.observe.run_report import summarize, summary_table, write_summary
from rlhf_ray.rewards.load import with_absolute_paths
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.reward_checks import check_judge, check_service, with_reward_model
from rlhf_ray.stages.rl.evaluation import load_held_out, make_evaluator
from rlhf_ray.stages.rl.inputs import _Inputs
from rlhf_ray.stages.rl.parts import (
    _publisher,
    _rollouts,
    _saver,
    _scorers,
    _trainer,
    _turns,
    check_tasks,
    make_pipeline,
    make_reference_updater,
    make_texts,
    save_models,
)
from rlhf_ray.stages.trained_part import check_trained, trained_identity, with_named_layers


def run(config: Config) -> int:
    """Train a policy against rewards.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the inputs are wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    output = Path(config.output_dir)
    identity = _identity(config)
    resume_from = checkpoint_to_resume(output, config.resume, identity)
    check_models(config)
    config = dataclasses.replace(config, reward=with_absolute_paths(config.reward))
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    with ExitStack() as stack:
        screen = stack.enter_context(quiet_driver(output))
        progress = make_progress(config.observe.progress, config.num_steps, screen)
        stack.callback(progress.close)
        plan = plan_resources(config)
        progress.message(f"{render_rows(batch_table(config))}\n{describe(plan)}")
        progress.phase("model")
        path = resolve_model_path(config.model.path, seed=config.seed, report=progress.message)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=path))
        tokenizer = load_tokenizer(config.model)
        check_trained(config)
        config = with_named_layers(config)
        prompts = load_prompts(config.data, tokenizer, seed=config.seed)
        inputs = _Inputs(
            prompts=prompts,
            vocabulary=len(tokenizer),
            texts=make_texts(config, tokenizer, report=progress.message),
            identity=identity,
            resume_from=resume_from,
            held_out=load_held_out(config, tokenizer, prompts, report=progress.message),
        )
        check_tasks(config, inputs.prompts)
        check_service(config.reward, report=progress.message)
        check_judge(config, inputs.prompts, report=progress.message)
        config = with_reward_model(config, tokenizer, inputs.prompts, report=progress.message)
        progress.message(inputs.prompts.describe())
        progress.phase("start")
        stack.enter_context(connected(dashboard=config.observe.dashboard))
        system = stack.enter_context(started_system(config, plan))
        _train(config, system, inputs, progress)
        progress.close()
        print(_report(output), file=screen, flush=True)
    return 0


def _train(config: Config, system: System, inputs: _Inputs, progress: Progress) -> None:
    pipeline = make_pipeline(config, system, inputs.prompts)
    publisher = _publisher(config, system, inputs)
    turns = _turns(config, system)
    evaluator = make_evaluator(
        config, system, inputs.held_out, turns, is_resumed=inputs.resume_from is not None
    )
    saver = _saver(config, system, inputs, evaluator)
    reference_updater = make_reference_updater(config, system)
    reference_updater.check()

    state = LoopState(step=0, controllers=start_controllers(config.algorithm))
    progress.phase("publish")
    if inputs.resume_from:
        state = saver.load(inputs.resume_from, pipeline)
        publisher.publish(state.step)
        progress.message(f"resumed after step {state.step} from {inputs.resume_from}")
    elif config.publishes_adapter:
        # One that changes nothing yet: from the first one on a publish replaces it under requests.
        publisher.publish(0)
    publisher.prove(state.step)
    turns.begin_generating()

    output = Path(config.output_dir)
    run_name = config.recipe or output.name
    with make_writer(config.observe, output, run=run_name, last_step=state.step) as metrics:
        rollouts = _rollouts(config, system)
        loop = Loop(
            pipeline=pipeline,
            scorers=_scorers(config, system),
            trainer=_trainer(config, system, inputs.texts),
            publisher=publisher,
            reference_updater=reference_updater,
            turns=turns,
            evaluator=evaluator,
            watch=system.supervisor,
            observer=RunLog(metrics=metrics, progress=progress, rollouts=rollouts),
            saver=saver,
        )
        train(loop, state, num_steps=config.num_steps)
        rollouts.flush()

    progress.phase("save")
    turns.begin_training()
    save_models(config, system)


def _report(output: Path) -> str:
    summary = summarize(read_metrics(output / "metrics.jsonl"), result=output / "model")
    write_summary(output, summary)
    return summary_table(summary)


def _identity(config: Config) -> dict[str, Any]:
    """Settings without which a resumed run is not the same run."""
    return {
        "seed": config.seed,
        "model.path": config.model.path,
        "data.path": config.data.path,
        # What is off is null, as in a checkpoint of a release that did not have it.
        "texts.path": config.texts.path or None,
        "prompts_per_step": config.prompts_per_step,
        "samples_per_prompt": config.samples_per_prompt,
        "algorithm.name": config.algorithm.name,
        "algorithm.advantage": config.algorithm.advantage,
        "algorithm.reference_every": config.algorithm.reference_every or None,
        "algorithm.reward_normalization": _unless_none(config.algorithm.reward_normalization),
        "training.ema_decay": config.training.ema_decay,
        **trained_identity(config),
    }


def _unless_none(choice: str) -> str | None:
    return None if choice == "none" else choice
