"""stage=serve_reward: a reward model that scores responses over HTTP, for runs elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from rlhf_ray.cluster.roles.reward_model import with_moments
from rlhf_ray.config.bearer_token import read_token
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.config.run import Config
from rlhf_ray.models.fingerprint import model_facts
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import FolderUse, Stage


def run(config: Config) -> int:
    """Serve `reward.model` until SIGTERM.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the model cannot score, the token is missing, or the port is in use;
            nothing has been loaded then.
    """
    # Seconds of import, which a description of the stage does not need.
    from rlhf_ray.models.checks.chat_template import check_chat_template
    from rlhf_ray.models.checks.whole_model import Use, check_weights
    from rlhf_ray.models.loading import load_tokenizer
    from rlhf_ray.models.reward_source import check_reward_model, reward_model_source
    from rlhf_ray.serving.server import address_of, listen, serve
    from rlhf_ray.serving.service import ScoreService
    from rlhf_ray.training.roles.reward_scorer import RewardScorer

    settings = config.serve
    token = read_token("serve.token_variable", settings.token_variable)
    source = reward_model_source(config.reward.model, config.model)
    check_reward_model(source)
    check_weights(source, Use.SCORES, key="reward.model.path")
    tokenizer = load_tokenizer(source)
    check_chat_template(tokenizer, source.tokenizer_path or source.path)
    model = replace(with_moments(config.reward.model), foreign_tokens="text")
    facts = _facts(model)
    with (
        closing(listen(settings.host, settings.port)) as listener,
        ThreadPoolExecutor(max_workers=1) as executor,
    ):
        service = ScoreService(
            facts=facts,
            executor=executor,
            token=token,
            settings=settings,
        )
        _say(f"loading {facts['model']} ({facts['fingerprint']}) for {address_of(listener)}")
        scorer = RewardScorer(
            reward_model=model,
            model=config.model,
            seed=config.seed,
            timeout_s=config.deadlines.start_s,
        )

        async def load() -> None:
            await asyncio.get_running_loop().run_in_executor(executor, scorer.start_alone)
            service.begin(scorer)
            _say(f"ready at {address_of(listener)}")

        try:
            serve(service.application, listener, work=load, limits=settings.limits, report=_say)
        finally:
            executor.submit(scorer.close).result()
    _say("ended")
    return 0


def _facts(model: ModelRewardConfig) -> dict[str, Any]:
    """The answer of /health about the model."""
    assert model.path is not None, "a rule asks for it"
    told = "\n".join([*model_facts(model.path), str(model.mean), str(model.standard_deviation)])
    return {
        "model": model.path,
        "fingerprint": hashlib.sha256(told.encode()).hexdigest()[:16],
        "mean": model.mean,
        "standard_deviation": model.standard_deviation,
    }


def _say(line: str) -> None:
    print(line, flush=True)


def _describe(config: Config) -> str:
    serve, model = config.serve, config.reward.model
    whose = f"the token in {serve.token_variable}" if serve.token_variable else "no token"
    return (
        f"# Service\n{model.path} in {model.dtype} on {'a GPU' if model.num_gpus else 'the CPU'}, "
        f"at {serve.host}, port {serve.port or 'that is free'}, with {whose}"
    )


STAGE = Stage(
    name="serve_reward", describe=_describe, run=run, folder=FolderUse.NONE, check=check_request
)
