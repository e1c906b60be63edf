"""Loss and gradient do not depend on ranks, ZeRO stage, micro-batches or recomputation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.stack.training.conftest import Seen
from tests.stack.training.samples import (
    KL_COEFFICIENT,
    LENGTHS,
    TEMPERATURE,
    load_samples,
    reference_rows,
    support_sets,
)

pytestmark = pytest.mark.stack
STAGES = (0, 1, 2, 3)


def relative_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference divided by the norm, of all tensors together."""
    assert left.keys() == right.keys()
    norm = sum(float(value.double().square().sum()) for value in right.values())
    assert norm > 0, "nothing to compare"
    difference = sum(
        float((left[name].double() - right[name].double()).square().sum()) for name in right
    )
    return (difference / norm) ** 0.5


def assert_same_metrics(left: dict[str, float], right: dict[str, float], *, rel: float) -> None:
    assert left.keys() == right.keys()
    for name, value in right.items():
        assert left[name] == pytest.approx(value, rel=rel, abs=1e-9), name


def test_whole_distributions_give_the_same_on_two_ranks(seen: Seen):
    one, two = seen.one["whole_distributions"], seen.two[0]["whole_distributions_zero_3"]
    assert relative_difference(two["gradient"], one["gradient"]) < 1e-6
    assert_same_metrics(two["metrics"], one["metrics"], rel=2e-6)
    # The penalty, a twentieth of the loss, differs from that of the sampled tokens.
    assert relative_difference(one["gradient"], seen.one["kept_tokens"]["gradient"]) > 1e-3


@torch.no_grad()
def test_a_reference_scores_all_tokens_that_could_be_sampled(seen: Seen):
    model = AutoModelForCausalLM.from_pretrained(seen.folder / "policy", dtype=torch.float64)
    data = load_samples(seen.folder)
    kept = support_sets(data["token_ids"], data["loss_mask"])
    rows, sampled = torch.full(kept.shape, -math.inf, dtype=torch.float64), []
    start = 0
    for length in LENGTHS:
        token_ids = data["token_ids"][start : start + length]
        logits = model(input_ids=token_ids[None]).logits[0] / TEMPERATURE
        for position in range(length):
            own = kept[start + position]
            present = own[own >= 0].long()
            if present.numel():
                logprobs = logits[position - 1][present].log_softmax(0)
                rows[start + position, : present.numel()] = logprobs
                sampled.append(float(logprobs[present == token_ids[position]]))
            else:
                sampled.append(0.0)
        start += length
    for result in (
        seen.one["reference_over_support"],
        seen.two[0]["reference_over_support_zero_3"],
    ):
        torch.testing.assert_close(
            torch.cat(result["support_logprobs"]).double(), rows, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            torch.cat(result["values"]).double(), torch.tensor(sampled).double(), rtol=0, atol=1e-5
        )
    assert seen.two[1]["reference_over_support_zero_3"]["values"] == []


@pytest.mark.parametrize("scenario", ["policy_gradient", "value_gradient"])
def test_one_rank_equals_two_with_uneven_token_counts(seen: Seen, scenario):
    one = seen.one[scenario]
    loss = "policy/loss" if scenario == "policy_gradient" else "value/loss"
    assert abs(one["metrics"][loss]) > 1e-3
    for two in seen.two:
        assert relative_difference(two[scenario]["gradient"], one["gradient"]) < 1e-6
        assert two[scenario]["metrics"][loss] == pytest.approx(one["metrics"][loss], rel=1e-6)
        assert_same_metrics(two[scenario]["metrics"], one["metrics"], rel=2e-6)


@pytest.mark.parametrize("scenario", ["policy_gradient", "value_gradient"])
def test_sharded_parameters_give_the_same_gradient(seen: Seen, scenario):
    sharded = seen.two[0][f"{scenario}_zero_3"]
    assert relative_difference(sharded["gradient"], seen.one[scenario]["gradient"]) < 1e-6
    assert_same_metrics(sharded["metrics"], seen.one[scenario]["metrics"], rel=2e-6)


def plain_policy_loss(
    folder: Any, *, kept: bool = False, whole: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Ground truth in float64: one sample after the other, formulas written out."""
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float64)
    data = load_samples(folder)
    if kept:
        data["support_token_ids"] = support_sets(data["token_ids"], data["loss_mask"])
        data["reference_support_logprobs"] = reference_rows(data["support_token_ids"])
    total = torch.zeros((), dtype=torch.float64)
    start = 0
    for length in LENGTHS:
        part = {name: tensor[start : start + length] for name, tensor in data.items()}
        start += length
        logits = model(input_ids=part["token_ids"][None]).logits[0] / TEMPERATURE
        for position in range(1, length):
            if not part["loss_mask"][position]:
                continue
            row = logits[position - 1]
            if kept:
                own = part["support_token_ids"][position]
                normalizer = row[own[own >= 0].long()].logsumexp(0)
            else:
                normalizer = row.logsumexp(0)
            logprob = row[part["token_ids"][position]] - normalizer
            ratio = (logprob - part["old_logprobs"][position].double()).exp()
            advantage = part["advantages"][position].double()
            total = total - torch.minimum(
                ratio * advantage, ratio.clamp(1 - 0.2, 1 + 0.2) * advantage
            )
            if whole:
                for place, token in enumerate(part["support_token_ids"][position].tolist()):
                    if token >= 0:
                        own = row[token] - normalizer
                        away = own - part["reference_support_logprobs"][position, place].double()
                        total = total + KL_COEFFICIENT * own.exp() * away
                continue
            towards = part["reference_logprobs"][position].double() - logprob
            total = total + KL_COEFFICIENT * (towards.exp() - 1 - towards)
    loss = total / int(data["loss_mask"].sum())
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", STAGES)
def test_chunks_of_the_head_change_nothing(seen: Seen, stage):
    """Tied embeddings, on ranks with uneven numbers of rows, at every ZeRO stage."""
    expected = seen.one["policy_gradient"]
    for found in (seen.one["in_chunks"], *(rank[f"in_chunks_zero_{stage}"] for rank in seen.two)):
        assert relative_difference(found["gradient"], expected["gradient"]) < 1e-6
        assert_same_metrics(found["metrics"], expected["metrics"], rel=2e-6)


def test_chunks_and_recomputed_activations_go_together(seen: Seen):
    found = seen.two[0]["in_chunks_recomputed_zero_3"]
    expected = seen.one["policy_gradient"]
    assert relative_difference(found["gradient"], expected["gradient"]) < 1e-6


def test_losses_of_whole_sequences_are_the_same_on_two_ranks(seen: Seen):
    one = seen.one["of_sequences"]
    for rank in seen.two:
        two = rank["of_sequences"]
        assert relative_difference(two["gradient"], one["gradient"]) < 1e-6
        assert_same_metrics(two["metrics"], one["metrics"], rel=2e-6)
    assert relative_difference(one["gradient"], seen.one["policy_gradient"]["gradient"]) > 0.1


def test_a_part_of_the_vocabulary_gives_the_same_on_two_ranks(seen: Seen):
    one, two = seen.one["kept_tokens"], seen.two[0]["kept_tokens_zero_3"]
    assert relative_difference(two["gradient"], one["gradient"]) < 1e-6
    assert_same_metrics(two["metrics"], one["metrics"], rel=2e-6)
    assert relative_difference(one["gradient"], seen.one["policy_gradient"]["gradient"]) > 0.1
    # Of 6 and of 8 tokens that are almost equally likely.
    assert math.log(6) < one["metrics"]["policy/entropy"] < math.log(8)


@pytest.mark.parametrize("scenario", ["policy_gradient", "kept_tokens", "whole_distributions"])
def test_policy_loss_and_gradient_equal_ground_truth(seen: Seen, scenario):
    loss, gradient = plain_policy_loss(
        seen.folder, kept=scenario != "policy_gradient", whole=scenario == "whole_distributions"
    )
    result = seen.one[scenario]
    found = {name.removeprefix("model."): value for name, value in result["gradient"].items()}
    assert relative_difference(found, gradient) < 1e-5
    metrics = result["metrics"]
    assert metrics["policy/loss"] + metrics["kl/loss"] == pytest.approx(loss.item(), rel=1e-5)
    norm = sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
    assert metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["policy/clip_fraction"] > 0.1
    assert abs(metrics["policy/loss"]) > 1e-3


@pytest.mark.parametrize("world_size", [1, 2])
def test_recomputed_activations_give_the_same_gradient(seen: Seen, world_size):
    name = "gradient_checkpointing" if world_size == 1 else "gradient_checkpointing_zero_3"
    recomputed = (seen.one if world_size == 1 else seen.two[0])[name]
    expected = seen.one["policy_gradient"]
    assert relative_difference(recomputed["gradient"], expected["gradient"]) < 1e-6
    assert_same_metrics(recomputed["metrics"], expected["metrics"], rel=2e-6)


def test_the_split_into_micro_batches_changes_nothing(seen: Seen):
    for gradient in seen.one["other_micro_batches"]["gradients"]:
        difference = relative_difference(gradient, seen.one["policy_gradient"]["gradient"])
        assert difference < 1e-6


@pytest.mark.parametrize("stage", STAGES[1:])
def test_zero_stages_agree(seen: Seen, stage):
    expected = seen.two[0]["two_steps_zero_0"]
    for rank in seen.two:
        found = rank[f"two_steps_zero_{stage}"]
        assert relative_difference(found["weights"], expected["weights"]) < 1e-6
        for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
            assert_same_metrics(mine, theirs, rel=1e-5)


@pytest.mark.parametrize(
    "scenario", [*(f"offload_optimizer_zero_{s}" for s in STAGES[1:]), "offload_all_zero_3"]
)
def test_offloading_changes_nothing(seen: Seen, scenario):
    expected = seen.two[0]["two_steps_zero_0"]
    found = seen.two[0][scenario]
    assert relative_difference(found["weights"], expected["weights"]) < 1e-6
    for mine, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        assert_same_metrics(mine, theirs, rel=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learner_that_leaves_its_device_part_by_part_trains_the_same(seen: Seen, stage, dtype):
    is_exact = dtype == "float32"
    suffix = f"zero_{stage}" if is_exact else f"bfloat16_zero_{stage}"
    straight = f"two_steps_{suffix}" if is_exact else suffix
    for rank in seen.two:
        found, expected = rank[f"in_turns_{suffix}"], rank[straight]
        assert found["metrics"] == expected["metrics"]
        for name, value in expected["weights"].items():
            assert torch.equal(found["weights"][name], value), name
            # Without its states on the device it gives away what it has trained.
            assert torch.equal(found["published"][name], found["trained"][name]), name


def test_two_steps_move_the_weights(seen: Seen):
    before = seen.one["policy_gradient"]["before"]
    assert relative_difference(seen.two[0]["two_steps_zero_0"]["weights"], before) > 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_agrees_over_stages_and_stays_near_float32(seen: Seen, stage):
    found = seen.two[0][f"bfloat16_zero_{stage}"]
    assert {value.dtype for value in found["weights"].values()} == {torch.bfloat16}
    # Frequencies of rotary embeddings in bfloat16 would be wrong from a few hundred tokens on.
    assert found["buffers_in_float32"]
    same = seen.two[0]["bfloat16_zero_1"]
    assert relative_difference(found["weights"], same["weights"]) < 1e-3
    assert relative_difference(found["weights"], seen.one["bfloat16_zero_0"]["weights"]) < 4e-3
    exact = seen.two[0]["two_steps_zero_0"]
    assert relative_difference(found["weights"], exact["weights"]) < 3e-2
    for mine, theirs in zip(found["metrics"], exact["metrics"], strict=True):
        assert mine["policy/loss"] == pytest.approx(theirs["policy/loss"], abs=0.03)
        assert mine["policy/grad_norm"] == pytest.approx(theirs["policy/grad_norm"], rel=0.05)


def test_the_on_policy_shortcut_equals_scoring_first(seen: Seen):
    short, long = seen.one["on_policy"], seen.one["scored_first"]
    assert relative_difference(short["gradient"], long["gradient"]) < 1e-6
    assert short["metrics"]["policy/approx_kl"] == 0.0
    assert short["metrics"]["policy/clip_fraction"] == 0.0
    losses = [run["metrics"]["policy/loss"] for run in (short, long)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Not the same as with the old log-probabilities of the samples.
    other = seen.one["policy_gradient"]["gradient"]
    assert relative_difference(short["gradient"], other) > 1e-2


@pytest.mark.parametrize("role", ["learner", "critic"])
def test_packed_rows_and_shared_prompts_change_nothing(seen: Seen, role):
    padded, packed = (seen.one[f"{layout}_{role}"] for layout in ("padded", "packed"))
    # Three samples of 4, 6 and 8 needed tokens, 2 of them shared; and two samples alone.
    assert padded["rows"] == [(3, 8), (1, 3), (1, 11)]
    assert packed["rows"] == [(1, 14), (1, 3), (1, 11)]
    assert relative_difference(packed["gradient"], padded["gradient"]) < 1e-6
    assert_same_metrics(packed["metrics"], padded["metrics"], rel=2e-6)
    (found,), (expected,) = packed["scores"], padded["scores"]
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("role", ["learner", "critic"])
def test_samples_told_apart_by_positions_change_nothing(seen: Seen, role):
    padded, row = (seen.one[f"{layout}_{role}"] for layout in ("padded", "varlen"))
    assert row["rows"] == [(1, 18), (1, 3), (1, 11)]
    assert relative_difference(row["gradient"], padded["gradient"]) < 1e-6
    assert_same_metrics(row["metrics"], padded["metrics"], rel=2e-6)
    (found,), (expected,) = row["scores"], padded["scores"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_packed_rows_of_sharded_parameters_change_nothing(seen: Seen):
    expected = seen.one["padded_learner"]
    for rank in seen.two:
        found = rank["packed_learner_zero_3"]
        assert relative_difference(found["gradient"], expected["gradient"]) < 1e-6
        assert_same_metrics(found["metrics"], expected["metrics"], rel=2e-6)
    assert seen.two[0]["packed_learner_zero_3"]["rows"][0] == (1, 8)
    scores = seen.two[0]["packed_learner_zero_3"]["scores"]
    torch.testing.assert_close(scores, expected["scores"], rtol=1e-5, atol=1e-6)
