"""Table of the scenarios by name, for each world size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.stack.training.adapted_scenarios import ADAPTED
from tests.stack.training.base_scenarios import BASES
from tests.stack.training.checkpoint_scenarios import RESTORED
from tests.stack.training.following_table import FOLLOWING
from tests.stack.training.mixture import losses_of_texts, with_texts
from tests.stack.training.preference_scenarios import COMPARED
from tests.stack.training.rank import Rank
from tests.stack.training.ranking_scenarios import RANKED
from tests.stack.training.relaid_scenarios import RELAID, RELAID_ALL
from tests.stack.training.scenarios import (
    critic_resume,
    default_critic,
    in_chunks,
    mismatch,
    no_gpu,
    not_finite,
    nothing_to_learn,
    of_sequences,
    on_policy,
    other_micro_batches,
    policy_gradient,
    reference_over_support,
    refused_checkpoints,
    resume,
    rows_of_a_batch,
    saved_in_files,
    saved_model,
    scored_first,
    scores,
    scores_between_updates,
    several_steps_in_one_update,
    two_steps,
    two_steps_in_turns,
    value_gradient,
    whole_distributions,
)
from tests.stack.training.sequence_scenarios import DIVIDED, MATRIX
from tests.stack.training.sft_scenarios import (
    from_random_weights,
    learn_from_texts,
    several_steps,
)
from tests.stack.training.sharded_scenarios import SHARDED, SIZES
from tests.stack.training.slice_scenarios import SLICE_MATRIX, SLICED

Scenario = Callable[[Rank], dict[str, Any]]

# Adam's step hardly depends on the size of the gradient, unless epsilon is as large.
CLIPPED = {"gradient_clip_norm": 0.01, "adam_epsilon": 1e-2}


def _stages(
    prefix: str, scenario: Callable[..., dict[str, Any]], stages: tuple[int, ...], **settings: Any
) -> dict[str, Scenario]:
    return {
        f"{prefix}_zero_{stage}": lambda r, stage=stage: scenario(r, zero_stage=stage, **settings)
        for stage in stages
    }


SCENARIOS: dict[int, dict[str, Scenario]] = {
    1: {
        **RANKED[1],
        "no_gpu": no_gpu,
        "policy_gradient": policy_gradient,
        "value_gradient": value_gradient,
        "default_critic": default_critic,
        "gradient_checkpointing": lambda r: policy_gradient(r, gradient_checkpointing=True),
        "clipped": lambda r: policy_gradient(r, **CLIPPED),
        "on_policy": on_policy,
        "scored_first": scored_first,
        "several_steps_in_one_update": several_steps_in_one_update,
        "other_micro_batches": other_micro_batches,
        "in_chunks": in_chunks,
        "of_sequences": of_sequences,
        "kept_tokens": lambda r: in_chunks(r, kept=True),
        "whole_distributions": whole_distributions,
        "reference_over_support": reference_over_support,
        "with_texts": with_texts,
        "texts_learnt": lambda r: losses_of_texts(r, coefficient=1.0),
        "texts_only_measured": lambda r: losses_of_texts(r, coefficient=1e-9),
        **{
            f"{layout}_{role}": lambda r, layout=layout, role=role: rows_of_a_batch(
                r, getattr(r, role), layout=layout
            )
            for layout in ("padded", "packed", "varlen")
            for role in ("learner", "critic")
        },
        "sft": learn_from_texts,
        "sft_packed": lambda r: learn_from_texts(r, layout="packed"),
        "sft_several_steps": several_steps,
        "scores": lambda r: scores(r, r.learner),
        "other_reference": lambda r: scores(r, r.reference, path=str(r.folder / "other_policy")),
        "saved_model": lambda r: saved_model(r, name="zero_0"),
        "saved_in_files": lambda r: saved_in_files(r, name="files_one"),
        "not_finite": not_finite,
        "nothing_to_learn": nothing_to_learn,
        "bfloat16_zero_0": lambda r: two_steps(r, dtype="bfloat16"),
        "resume_zero_0": lambda r: resume(r, name="one_rank"),
        "refused_checkpoints": refused_checkpoints,
    },
    2: {
        **SHARDED,
        "policy_gradient": policy_gradient,
        "value_gradient": value_gradient,
        "policy_gradient_zero_3": lambda r: policy_gradient(r, zero_stage=3),
        "value_gradient_zero_3": lambda r: value_gradient(r, zero_stage=3),
        "gradient_checkpointing_zero_3": lambda r: policy_gradient(
            r, zero_stage=3, gradient_checkpointing=True
        ),
        **_stages("in_chunks", in_chunks, (0, 1, 2, 3)),
        "in_chunks_recomputed_zero_3": lambda r: in_chunks(
            r, zero_stage=3, gradient_checkpointing=True
        ),
        "of_sequences": lambda r: of_sequences(r, zero_stage=2),
        "kept_tokens_zero_3": lambda r: in_chunks(r, kept=True, zero_stage=3),
        "whole_distributions_zero_3": lambda r: whole_distributions(r, zero_stage=3),
        "reference_over_support_zero_3": lambda r: reference_over_support(r, zero_stage=3),
        **_stages("with_texts", with_texts, (0, 1, 2, 3)),
        **_stages("two_steps", two_steps, (0, 1, 2, 3)),
        **_stages("bfloat16", two_steps, (0, 1, 2, 3), dtype="bfloat16"),
        **_stages("offload_optimizer", two_steps, (1, 2, 3), offload_optimizer=True),
        **_stages("in_turns", two_steps_in_turns, (2, 3)),
        **_stages("in_turns_bfloat16", two_steps_in_turns, (2, 3), dtype="bfloat16"),
        "offload_all_zero_3": lambda r: two_steps(
            r, zero_stage=3, offload_optimizer=True, offload_parameters=True
        ),
        **_stages("clipped", policy_gradient, (0, 2, 3), **CLIPPED),
        **_stages("nothing_to_learn", nothing_to_learn, (2, 3)),
        **{
            f"resume_zero_{s}": lambda r, s=s: resume(r, name=f"zero_{s}", zero_stage=s)
            for s in (0, 1, 2, 3)
        },
        "resume_bfloat16_zero_0": lambda r: resume(r, name="bfloat16", dtype="bfloat16"),
        "critic_resume_zero_2": lambda r: critic_resume(r, zero_stage=2),
        **{
            f"saved_in_files_zero_{s}": lambda r, s=s: saved_in_files(
                r, name=f"files_{s}", zero_stage=s, dtype="bfloat16"
            )
            for s in (2, 3)
        },
        "saved_model_zero_3": lambda r: saved_model(r, name="zero_3", zero_stage=3),
        "packed_learner_zero_3": lambda r: rows_of_a_batch(
            r, r.learner, layout="packed", zero_stage=3
        ),
        **_stages("sft", learn_from_texts, (0, 1, 2, 3)),
        "sft_packed_zero_3": lambda r: learn_from_texts(r, layout="packed", zero_stage=3),
        "from_random_weights": from_random_weights,
        "from_random_weights_zero_3": lambda r: from_random_weights(r, zero_stage=3),
        **RANKED[2],
        "scores_zero_0": lambda r: scores(r, r.learner),
        "scores_zero_3": lambda r: scores(r, r.learner, zero_stage=3),
        "scores_between_updates_zero_3": lambda r: scores_between_updates(r, zero_stage=3),
        "reference_zero_0": lambda r: scores(r, r.reference),
        "reference_zero_3": lambda r: scores(r, r.reference, zero_stage=3),
        "mismatch": mismatch,
        **DIVIDED,
    },
}

# By the name of their fixture: each is a separate set of processes.
# The same two updates on either device.
ON_GPU = {
    scenario_name: scenario
    for dtype in ("float32", "bfloat16")
    for scenario_name, scenario in (
        _stages(dtype, two_steps, (0, 1, 2, 3), dtype=dtype, num_gpus=1)
        | {f"resume_{dtype}": partial(resume, name=dtype, zero_stage=2, dtype=dtype, num_gpus=1)}
    ).items()
}

TABLES = {
    "seen": SCENARIOS,
    "on_cpu": {1: _stages("float32", two_steps, (0, 1, 2, 3))},
    "on_gpu": {1: ON_GPU},
    "restored": RESTORED,
    "relaid": RELAID,
    "relaid_all": RELAID_ALL,
    "bases": BASES,
    "sizes": SIZES,
    "followed": FOLLOWING,
    "divided": MATRIX,
    "sliced": SLICE_MATRIX,
    "paired": SLICED,
    "compared": COMPARED,
    "partial": ADAPTED,
}
