"""Scenarios that the processes of the training tests run; the tests check their results.

A scenario takes its `Rank` and returns data that `torch.load(weights_only=True)` accepts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.publish.base import LearnerPart
from rlhf_ray.records import Coefficients
from rlhf_ray.training.engine.device_states import DeviceStates
from rlhf_ray.training.roles.learner import Learner
from tests.stack.training.rank import (
    GRPO,
    Rank,
    buffer_dtypes,
    record_gradients,
    record_rows,
    small_chunks,
    weights_of,
)
from tests.stack.training.samples import (
    KL_COEFFICIENT,
    SPLITS,
    VOCABULARY,
    groups_of,
    make_experience,
    reference_rows,
    share_prompts,
    support_sets,
)

NO_PENALTY = Coefficients()


def two_steps(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        metrics = [here.update(learner) for _ in range(2)]
        return {
            "metrics": metrics,
            "weights": weights_of(learner),
            "buffers_in_float32": buffer_dtypes(learner) == {torch.float32},
        }


def two_steps_in_turns(here: Rank, **settings: Any) -> dict[str, Any]:
    """Between the updates the learner leaves its device part by part, and gives its weights away.

    On a CPU the parts move from host memory to host memory, by the same code.
    """
    with here.learner(**settings) as learner:
        metrics = [here.update(learner)]
        trained = weights_of(learner)
        states = DeviceStates(learner._engine._engine, keeps_masters=False)
        states.offload(LearnerPart.STATES)
        published = weights_of(learner)
        states.offload(LearnerPart.WEIGHTS)
        states.reload(torch.device("cpu"))
        metrics.append(here.update(learner))
        return {
            "metrics": metrics,
            "weights": weights_of(learner),
            "trained": trained,
            "published": published,
        }


def policy_gradient(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        gradients = record_gradients(learner)
        before = weights_of(learner)
        metrics = here.update(learner)
        return {
            "metrics": metrics,
            "gradient": gradients[0],
            "before": before,
            "after": weights_of(learner),
        }


def in_chunks(
    here: Rank, *, kept: bool = False, algorithm: AlgorithmConfig = GRPO, **settings: Any
) -> dict[str, Any]:
    """The head on three rows at a time; the ranks have uneven numbers of them, or none."""
    experience = here.experience
    if kept:
        sets = support_sets(experience.token_ids, experience.loss_mask)
        rows = reference_rows(sets)
        experience = replace(experience, support_token_ids=sets, reference_support_logprobs=rows)
    with small_chunks(3 * VOCABULARY), here.learner(algorithm, **settings) as learner:
        gradients = record_gradients(learner)
        metrics = learner.update([experience], coefficients=Coefficients(kl=KL_COEFFICIENT))
        return {"metrics": metrics, "gradient": gradients[0]}


def whole_distributions(here: Rank, **settings: Any) -> dict[str, Any]:
    """A KL penalty between whole distributions."""
    return in_chunks(here, kept=True, algorithm=replace(GRPO, kl_estimator="full"), **settings)


def of_sequences(here: Rank, **settings: Any) -> dict[str, Any]:
    """Losses that look at whole sequences, an entropy bonus and the likelihood of good tokens."""
    algorithm = AlgorithmConfig(
        ratio_level="sequence",
        reduction="sequence_mean",
        kl_coefficient=KL_COEFFICIENT,
        kl_gradient="unbiased",
        nll_coefficient=0.2,
    )
    with here.learner(algorithm, **settings) as learner:
        gradients = record_gradients(learner)
        coefficients = Coefficients(kl=KL_COEFFICIENT, entropy=0.3)
        uneven = here.experience.importance_weights * (1 + here.experience.token_ids % 3)
        experience = replace(here.experience, importance_weights=uneven)
        metrics = learner.update([experience], coefficients=coefficients)
        return {"metrics": metrics, "gradient": gradients[0]}


def value_gradient(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.critic(**settings) as critic:
        scores = critic.score(groups_of(here.data, (0, 2), (2, 5)))
        gradients = record_gradients(critic)
        metrics = critic.update([here.experience])
        return {
            "metrics": metrics,
            "gradient": gradients[0],
            "scores": torch.cat([torch.zeros(0), *(score.values for score in scores)]),
        }


def reference_over_support(here: Rank, **settings: Any) -> dict[str, Any]:
    """A reference that scores all tokens that could be sampled; the second rank has no group."""
    sets = support_sets(here.data["token_ids"], here.data["loss_mask"])
    groups = groups_of(here.data | {"support_token_ids": sets}, (0, 2), (2, 5))
    with here.reference(over_support=True, **settings) as reference:
        scored = reference.score(groups if here.share == 0 else [])
    return {
        "values": [part.values for part in scored],
        "support_logprobs": [part.support_logprobs for part in scored],
    }


def default_critic(here: Rank) -> dict[str, Any]:
    """Without a path the critic is the policy's backbone with a head of zeros."""
    with here.critic(path=None) as critic:
        groups = groups_of(here.data, (0, 5))
        before = critic.score(groups)[0].values
        critic.update([here.experience])
        return {"before": before, "after": critic.score(groups)[0].values}


def nothing_to_learn(here: Rank, **settings: Any) -> dict[str, Any]:
    """A gradient of zero: weight decay alone moves the weights."""
    nothing = replace(here.experience, advantages=torch.zeros_like(here.experience.advantages))
    with here.learner(warmup_steps=0, schedule="constant", **settings) as learner:
        before = weights_of(learner)
        metrics = learner.update([nothing], coefficients=NO_PENALTY)
        return {"before": before, "after": weights_of(learner), "metrics": metrics}


def resume(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Three steps with a checkpoint after the first; and the last two again from it."""
    folder = here.folder / f"checkpoint_{name}_{here.world_size}"
    with here.learner(**settings) as learner:
        here.update(learner)
        learner.save_checkpoint(folder)
        drawn = torch.rand(4)
        straight = [here.update(learner) for _ in range(2)]
        straight_weights = weights_of(learner)
    with here.learner(**settings) as learner:
        torch.rand(3)
        learner.load_checkpoint(folder)
        drawn_again = torch.rand(4)
        return {
            "straight": straight,
            "resumed": [here.update(learner) for _ in range(2)],
            "drawn": drawn,
            "drawn_again": drawn_again,
            "straight_weights": straight_weights,
            "resumed_weights": weights_of(learner),
        }


def refused_checkpoints(here: Rank) -> dict[str, Any]:
    """Messages about checkpoints of another dtype or model, and about incomplete ones."""
    folder = here.folder / "checkpoint_of_another"
    with here.learner(zero_stage=2) as learner:
        here.update(learner)
        learner.save_checkpoint(folder)
    with here.learner(freeze=["model.norm.weight"]) as learner:
        here.update(learner)
        learner.save_checkpoint(here.folder / "checkpoint_of_frozen")
    shutil.copytree(folder, here.folder / "checkpoint_without_index")
    (here.folder / "checkpoint_without_index" / "state_rank_00000.json").unlink()
    requests = {
        "dtype": (folder, {"dtype": "bfloat16"}),
        "missing": (here.folder / "nothing", {}),
        "no_index": (here.folder / "checkpoint_without_index", {}),
        "trains_more": (here.folder / "checkpoint_of_frozen", {}),
    }
    errors = {}
    for name, (wanted, settings) in requests.items():
        with here.learner(**settings) as learner:
            try:
                learner.load_checkpoint(wanted)
            except ValueError as error:
                errors[name] = str(error)
    return errors


def critic_resume(here: Rank, **settings: Any) -> dict[str, Any]:
    folder = here.folder / f"critic_checkpoint_{here.world_size}"
    groups = groups_of(here.data, (0, 5))
    with here.critic(**settings) as critic:
        critic.update([here.experience])
        critic.save_checkpoint(folder)
        straight = critic.update([here.experience])
        straight_values = critic.score(groups)[0].values
    with here.critic(**settings) as critic:
        critic.load_checkpoint(folder)
        return {
            "straight": straight,
            "resumed": critic.update([here.experience]),
            "straight_values": straight_values,
            "resumed_values": critic.score(groups)[0].values,
        }


def saved_model(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    with here.learner(**settings) as learner:
        here.update(learner)
        learner.save_model(here.folder / f"saved_{name}")
        return {"weights": weights_of(learner)}


def saved_in_files(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """A model that is larger than a file, and its EMA."""
    with here.in_files_of(10_000), here.learner(ema_decay=0.5, **settings) as learner:
        here.update(learner)
        learner.save_model(here.folder / f"saved_{name}")
        learner.save_average(here.folder / f"saved_{name}_ema")
        average = {key: tensor.clone() for key, tensor in learner.average_weights()}
        return {"weights": weights_of(learner), "average": average}


def scores(here: Rank, make: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """Rank 0 has three groups, another rank one or none."""
    mine = [(0, 1), (1, 3), (3, 5)] if here.share == 0 else [(4, 5)]
    with make(**settings) as role:
        result: dict[str, Any] = {
            "some": {s.prompt_id: s.values for s in role.score(groups_of(here.data, *mine))}
        }
        none = [] if here.share else mine
        result["none"] = {s.prompt_id: s.values for s in role.score(groups_of(here.data, *none))}
        if isinstance(role, Learner):
            result["sequences"] = role.score_sequences([(1, 2, 3, 4), (9, 8), (5, 5, 5, 5, 5)])
        return result


def scores_between_updates(here: Rank, **settings: Any) -> dict[str, Any]:
    """Scores without gradient before and after every update, as in the driver."""
    mine = groups_of(here.data, *([(0, 5)] if here.share == 0 else []))
    with here.learner(**settings) as learner:
        seen = [learner.score(mine)]
        metrics = []
        for _ in range(2):
            metrics.append(here.update(learner))
            seen.append(learner.score(mine))
        values = [part[0].values for part in seen if part]
        return {"metrics": metrics, "weights": weights_of(learner), "scores": values}


def on_policy(here: Rank) -> dict[str, Any]:
    experience = replace(here.experience, old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE)
    with here.learner() as learner:
        gradients = record_gradients(learner)
        metrics = learner.update([experience], coefficients=NO_PENALTY)
        return {"metrics": metrics, "gradient": gradients[0]}


def scored_first(here: Rank) -> dict[str, Any]:
    """The long way of `on_policy`: the policy's own log-probabilities as the old ones."""
    with here.learner() as learner:
        (scored,) = learner.score(groups_of(here.data, (0, 5)))
        experience = replace(here.experience, old_logprobs=scored.values)
        gradients = record_gradients(learner)
        metrics = learner.update([experience], coefficients=NO_PENALTY)
        return {"metrics": metrics, "gradient": gradients[0]}


def rows_of_a_batch(here: Rank, make: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """Scores and an update on samples with a common prompt; the tokens that were computed."""
    data = share_prompts(here.data)
    experience = make_experience(data, *SPLITS[here.world_size][here.rank])
    groups = groups_of(data, (0, 5)) if here.rank == 0 else []
    with make(**settings) as role:
        scores = [score.values for score in role.score(groups)]
        gradients = record_gradients(role)
        shapes = record_rows(role)
        if isinstance(role, Learner):
            metrics = role.update([experience], coefficients=Coefficients(kl=KL_COEFFICIENT))
        else:
            metrics = role.update([experience])
        return {
            "scores": scores,
            "metrics": metrics,
            "gradient": gradients[0],
            "rows": shapes,
        }


def several_steps_in_one_update(here: Rank) -> dict[str, Any]:
    first = here.experience
    second = replace(first, advantages=-2 * first.advantages)
    with here.learner() as learner:
        together = learner.update([first, second], coefficients=NO_PENALTY)
        weights = weights_of(learner)
    with here.learner() as learner:
        apart = [learner.update([part], coefficients=NO_PENALTY) for part in (first, second)]
        return {
            "together": together,
            "apart": apart,
            "weights": weights,
            "weights_apart": weights_of(learner),
        }


def other_micro_batches(here: Rank) -> dict[str, Any]:
    gradients = []
    for micro_batches in (((0, 1, 2, 3, 4),), ((4,), (0, 2), (1,), (3,))):
        experience = replace(here.experience, micro_batches=micro_batches)
        with here.learner() as learner:
            seen = record_gradients(learner)
            learner.update([experience], coefficients=Coefficients(kl=0.05))
            gradients.append(seen[0])
    return {"gradients": gradients}


def mismatch(here: Rank) -> dict[str, Any]:
    """Ranks with different numbers of micro-batches or steps are refused, not left waiting."""
    rows = tuple(range(here.experience.lengths.shape[0]))
    uneven = replace(here.experience, micro_batches=(rows,) if here.rank == 0 else (rows, ()))
    requests = {
        "micro_batches": [uneven],
        "steps": [here.experience] * (2 if here.rank == 0 else 1),
    }
    errors = {}
    for name, experiences in requests.items():
        with here.learner() as learner:
            try:
                learner.update(experiences, coefficients=NO_PENALTY)
            except ValueError as error:
                errors[name] = str(error)
    return errors


def not_finite(here: Rank) -> dict[str, Any]:
    broken = replace(here.experience, advantages=here.experience.advantages * float("nan"))
    errors = {}
    for stage in (0, 2):
        with here.learner(zero_stage=stage) as learner:
            try:
                learner.update([broken], coefficients=NO_PENALTY)
            except RuntimeError as error:
                errors[stage] = str(error)
    return errors


def no_gpu(here: Rank) -> dict[str, Any]:
    learner = here.learner(num_gpus=1)
    try:
        with learner:
            return {"error": ""}
    except ValueError as error:
        return {"error": str(error)}
