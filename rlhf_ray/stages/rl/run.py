"""Reinforcement learning: the roles, the loop, the result."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.adapter_roles import AdapterAlone
from rlhf_ray.cluster.resource_plan import describe, plan_resources
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.rl import System, started_system
from rlhf_ray.config.batch_table import batch_table, render_rows
from rlhf_ray.config.load import to_yaml
from rlhf_ray.config.run import Config
from rlhf_ray.data.prompts.load import PromptSet, load_prompts
from rlhf_ray.driver.checkpoints import Checkpoints
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.loop import Loop, LoopState, train
from rlhf_ray.driver.run_checkpoints import RunCheckpoints, StatefulRole, checkpoint_to_resume
from rlhf_ray.driver.run_log import NoRollouts, RolloutFiles, RunLog
from rlhf_ray.driver.updates.controllers import start_adaptive
from rlhf_ray.driver.updates.device_sharing import OwnDevices, SharedDevices, Turns
from rlhf_ray.driver.updates.scorers import NoScores, Scorers
from rlhf_ray.driver.updates.texts import TextSource
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.metrics import make_writer, read_metrics
from rlhf_ray.observe.progress import Progress, make_progress
from rlhf_ray.observe.quiet import quiet_driver
from rlhf_ray.observe.report import summarize, summary_table, write_summary
from rlhf_ray.publish.gate import default_tolerance, make_probe
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.records import Prompt
from rlhf_ray.rewards.load import with_absolute_paths
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.reward_checks import with_reward_model
from rlhf_ray.stages.rl.evaluation import load_held_out, make_evaluator
from rlhf_ray.stages.rl.parts import check_tasks, make_pipeline
from rlhf_ray.stages.rl_http_reward import check_service
from rlhf_ray.stages.rl_judge import check_judge
from rlhf_ray.stages.rl_reference import make_refresher, reference_role
from rlhf_ray.stages.rl_result import save_models
from rlhf_ray.stages.rl_texts import make_texts
from rlhf_ray.stages.trained_part import check_trained, trained_identity, with_named_layers

_PROBE_TOKENS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """What was read and checked before any worker started.

    Attributes:
        vocabulary: number of token ids.
        texts: what the policy learns beside its samples.
        identity: settings without which a resumed run is not the same run.
        resume_from: checkpoint folder, or None.
        held_out: prompts that are answered while the policy is trained; may be empty.
    """

    prompts: PromptSet
    vocabulary: int
    texts: TextSource
    identity: dict[str, Any]
    resume_from: Path | None
    held_out: tuple[Prompt, ...]


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
    refresher = make_refresher(config, system)
    refresher.check()

    state = LoopState(step=0, adaptive=start_adaptive(config.algorithm))
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
            refresher=refresher,
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


def _publisher(config: Config, system: System, inputs: _Inputs) -> Publisher:
    num_sequences = config.publish.num_probe_sequences
    probe = make_probe(
        [prompt.token_ids for prompt in inputs.prompts.prompts[:num_sequences]],
        num_sequences=num_sequences,
        num_tokens=min(_PROBE_TOKENS, config.max_sequence_tokens - 1),
        vocab_size=inputs.vocabulary,
        seed=config.seed,
    )
    tolerance = config.publish.probe_tolerance
    if tolerance is None:
        tolerance = default_tolerance(config.generation.dtype, config.training.dtype)
    return Publisher(
        source=AdapterAlone(system.learner) if config.publishes_adapter else system.learner,
        receivers=system.generators,
        watch=system.supervisor,
        probe=probe,
        settings=PublishSettings(
            bucket_bytes=config.publish.bucket_bytes,
            probe_every=config.publish.probe_every,
            probe_tolerance=tolerance,
            timeout_s=config.deadlines.publish_s,
        ),
    )


def _turns(config: Config, system: System) -> Turns:
    if config.placement.strategy == "disaggregated":
        return OwnDevices()
    return SharedDevices(
        engines=system.generators,
        trained=(system.learner,),
        watch=system.supervisor,
        timeout_s=config.deadlines.publish_s,
    )


def _scorers(config: Config, system: System) -> Scorers:
    return Scorers(
        reference=reference_role(config, system),
        critic=system.critic or NoScores(),
        old=system.learner if config.learner_scores_old else NoScores(),
        untrained=system.learner,
        num_untrained_steps=config.algorithm.critic_warmup_steps,
        watch=system.supervisor,
        timeout_s=config.deadlines.reference_s,
    )


def _trainer(config: Config, system: System, texts: TextSource) -> Trainer:
    return Trainer(
        builder=system.builder,
        learner=system.learner,
        critic=system.critic or NoCritic(),
        texts=texts,
        watch=system.supervisor,
        settings=TrainerSettings(
            build_timeout_s=config.deadlines.reference_s,
            update_timeout_s=config.deadlines.update_s,
            critic_warmup_steps=config.algorithm.critic_warmup_steps,
        ),
    )


def _saver(config: Config, system: System, inputs: _Inputs, evaluator: Evaluator) -> RunCheckpoints:
    roles: dict[str, StatefulRole] = {"learner": system.learner}
    if system.critic:
        roles["critic"] = system.critic
    if system.reference and config.algorithm.reference_every > 0:
        roles["reference"] = system.reference
    return RunCheckpoints(
        checkpoints=Checkpoints(Path(config.output_dir), keep_last=config.checkpoint.keep_last),
        roles=roles,
        texts=inputs.texts,
        evaluator=evaluator,
        watch=system.supervisor,
        every_steps=config.checkpoint.every_steps,
        timeout_s=config.deadlines.checkpoint_s,
        identity=inputs.identity,
    )


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


def _rollouts(config: Config, system: System) -> RolloutFiles | NoRollouts:
    if not config.observe.rollouts:
        return NoRollouts()
    return RolloutFiles(
        system.builder,
        system.supervisor,
        Path(config.output_dir),
        timeout_s=config.deadlines.checkpoint_s,
    )
