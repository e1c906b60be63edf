"""Scores of sampled answers against transformers' own classifier, and failures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.batching.row_layout import row_layout
from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.data.examples import load_rankings
from rlhf_ray.data.examples.answer_encoding import encode_answers
from rlhf_ray.data.tokens.turn_ends import inner_turn_tokens
from rlhf_ray.models.loading import load_scalar_head
from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.objectives.rankings import ranking_objective, scores_of, spread_rankings
from rlhf_ray.records import FailureKind, Prompt, RolloutGroup
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.testing.tiny import tiny_reward_model
from rlhf_ray.training.forward.modules import ValueForward, disable_dropout
from rlhf_ray.training.roles.answer_scores import AnswerScores, Limits, Share, limits_of

SIZES = TinySizes(
    hidden=32, intermediate=64, num_layers=2, num_heads=4, num_key_value_heads=2, head_size=8
)
PROMPT, END = (4, 70, 71, 72, 73, 74, 75, 3), 1
# Token ids after the prompt: rows of several lengths, two of them truncated.
ANSWERS = ((80, 81, 82, END), (90, END), (100, 101, 102, 103, 104, 105), (END,), (80, 81))
REASONS = ("stop", "stop", "length", "stop", "length")
TEXTS = ("the answer", "no", "this is late and", "", "thank")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("reward") / "model", seed=3, sizes=SIZES)


def group_of(answers=ANSWERS, reasons=REASONS, texts=TEXTS) -> RolloutGroup:
    rows = [[*PROMPT, *answer] for answer in answers]
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.tensor([place >= len(PROMPT) for row in rows for place in range(len(row))])
    num_tokens = mask.shape[0]
    return RolloutGroup(
        prompt=Prompt(
            prompt_id="e0-r0",
            stream_index=0,
            text="<user>What is this?<assistant>",
            token_ids=PROMPT,
            answer=None,
            source="test",
            seed=0,
            columns={},
            messages=({"role": "user", "content": "What is this?"},),
        ),
        sample_indices=tuple(range(len(rows))),
        token_ids=torch.tensor([token for row in rows for token in row]),
        lengths=lengths,
        loss_mask=mask,
        generator_logprobs=torch.zeros(num_tokens),
        support_token_ids=None,
        weight_versions=torch.zeros(num_tokens, dtype=torch.int64),
        responses=tuple(texts),
        finish_reasons=tuple(reasons),
        rewards=torch.zeros(0, dtype=torch.float64),
        reward_parts={},
        failures=(),
    )


class Loaded:
    """The model of a folder and its scorers; counts the tokens that it computes."""

    def __init__(self, folder: Path) -> None:
        self.model = load_scalar_head(ModelConfig(path=str(folder)), dtype="float32")
        self.module = ValueForward(self.model)
        disable_dropout(self.module)
        self.computed: list[tuple[int, ...]] = []
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def scores(
        self,
        *,
        text: bool = False,
        limits: Limits | None = None,
        share: Share | None = None,
        **keys: Any,
    ) -> AnswerScores:
        settings = ModelRewardConfig(**{"path": "x", "normalize": False, **keys})

        def predict(batch: Any) -> Tensor:
            self.computed.append(tuple(batch.input_ids.shape))
            return self.module(batch.input_ids, batch.hidden_index, batch.packing)

        return AnswerScores(
            settings,
            predict=predict,
            layout=row_layout(self.model.backbone, settings, "sdpa"),
            limits=limits or limits_of(self.model),
            tokenizer=self.tokenizer if text else None,
            turn_tokens={} if text else inner_turn_tokens(self.tokenizer),
            share=share,
        )


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    return Loaded(folder)


@torch.no_grad()
def by_transformers(folder: Path, rows: list[list[int]]) -> list[float]:
    """Scores one row at a time and all rows padded together, which must agree."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    alone = [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]
    width, padding = max(map(len, rows)), model.config.pad_token_id
    padded = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    together = model(padded, attention_mask=mask).logits[:, 0].tolist()
    assert together == pytest.approx(alone, abs=1e-5)
    return alone


def rows_of(group: RolloutGroup) -> list[list[int]]:
    return [part.tolist() for part in group.token_ids.split(group.lengths.tolist())]


@pytest.mark.parametrize("layout", ["padded", "packed", "auto"])
@pytest.mark.parametrize("budget", [14, 30, 1000])
def test_scores_are_those_of_transformers(folder, loaded, layout, budget):
    group = group_of()
    scores = loaded.scores(layout=layout, max_tokens_per_micro_batch=budget).score(group)
    assert scores == pytest.approx(by_transformers(folder, rows_of(group)), abs=1e-5)
    assert len({round(score, 3) for score in scores}) == len(ANSWERS), "they tell answers apart"
    # A placeholder is planned after every answer.
    assert all(rows * width <= budget + 1 for rows, width in loaded.computed)
    # Packed, the whole group has 23 tokens.
    assert (len(loaded.computed) == 1) == (budget == 1000 or (budget, layout) == (30, "packed"))


def test_a_prompt_that_samples_share_is_computed_once(folder, loaded):
    group = group_of()
    loaded.scores(layout="packed").score(group)
    ((rows, width),) = loaded.computed
    assert rows * width == len(PROMPT) + sum(len(answer) for answer in ANSWERS)


def test_normalised_and_clipped(folder, loaded):
    raw = by_transformers(folder, rows_of(group_of()))
    keys = {"normalize": True, "mean": raw[0], "standard_deviation": 0.5}
    scores = loaded.scores(**keys).score(group_of())
    expected = [(score - raw[0]) / 0.5 for score in raw]
    assert scores == pytest.approx(expected, abs=1e-4)
    bound = max(abs(score) for score in expected) / 2
    clipped = loaded.scores(**keys, clip=bound).score(group_of())
    assert clipped == pytest.approx([max(-bound, min(s, bound)) for s in expected], abs=1e-4)
    assert clipped != pytest.approx(expected, abs=1e-4)


def test_unfinished_answers_may_have_a_fixed_score(folder, loaded):
    scores = loaded.scores(unfinished_score=-3.0).score(group_of())
    raw = by_transformers(folder, rows_of(group_of()))
    expected = [-3.0 if r == "length" else s for s, r in zip(raw, REASONS, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-5)
    loaded.computed.clear()
    cut = group_of(ANSWERS[:1], ("length",), TEXTS[:1])
    assert loaded.scores(unfinished_score=-3.0).score(cut) == [-3.0]
    assert loaded.computed == []


def test_texts_are_rendered_and_tokenised_again(folder, loaded):
    """The sampled ids here are of no real tokenizer: they must not matter."""
    group = replace(group_of(), token_ids=torch.full_like(group_of().token_ids, 9))
    scores = loaded.scores(text=True).score(group)
    start = "<user>What is this?<assistant>"
    ends = ["<eos>" if reason == "stop" else "" for reason in REASONS]
    texts = [start + text + end for text, end in zip(TEXTS, ends, strict=True)]
    rows = loaded.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert scores == pytest.approx(by_transformers(folder, rows), abs=1e-5)


def failures_of(outcomes) -> dict[int, ItemFailure]:
    return {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, ItemFailure)}


@pytest.mark.parametrize(
    ("limits", "keys", "failed", "words"),
    [
        (Limits(context=12, num_embeddings=320), {}, {2}, ["14 tokens", "at most 12"]),
        (Limits(context=None, num_embeddings=100), {}, {2}, ["token 105", "100 embeddings"]),
        (None, {"max_tokens_per_micro_batch": 13}, {2}, ["14 tokens", "micro_batch=13"]),
    ],
)
def test_answers_that_the_model_cannot_read_are_failures(loaded, limits, keys, failed, words):
    outcomes = loaded.scores(limits=limits, **keys).score(group_of())
    failures = failures_of(outcomes)
    assert set(failures) == failed
    for failure in failures.values():
        assert failure.kind == FailureKind.REWARD_ERROR
        assert [word for word in words if word not in failure.message] == []


@pytest.mark.parametrize(
    ("context", "budget", "expected"), [(12, 50, 12), (50, 12, 12), (None, 50, 50)]
)
def test_what_the_model_reads_at_most(loaded, context, budget, expected):
    limits = Limits(context=context, num_embeddings=320)
    scores = loaded.scores(limits=limits, max_tokens_per_micro_batch=budget)
    assert scores.max_tokens == expected


def test_limits_come_from_the_model(loaded):
    assert limits_of(loaded.model) == Limits(
        context=1024, num_embeddings=len(loaded.tokenizer), padding=loaded.tokenizer.pad_token_id
    )


def test_a_template_that_refuses_is_a_failure(loaded):
    loaded.tokenizer.chat_template = "{{ raise_exception('not for me') }}"
    failures = failures_of(loaded.scores(text=True).score(group_of()))
    assert set(failures) == set(range(len(ANSWERS)))
    assert "not for me" in failures[0].message
    assert failures[0].kind == FailureKind.REWARD_ERROR


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_a_failure(loaded, value):
    loaded.model.head.weight.data[0, 0] = value
    failures = failures_of(loaded.scores(clip=3.0).score(group_of()))
    assert set(failures) == set(range(len(ANSWERS)))
    assert {failure.kind for failure in failures.values()} == {FailureKind.REWARD_NOT_FINITE}


def test_ranks_compute_a_share_each(folder, loaded):
    """Three ranks; the last one has one sample, and none of a group of two."""
    for answers in (ANSWERS, ANSWERS[:2]):
        number = len(answers)
        group = group_of(answers, REASONS[:number], TEXTS[:number])
        parts: list[Tensor] = []

        def keep(values: Tensor) -> Tensor:
            parts.append(values.clone())  # noqa: B023 - called before the list is another
            return values

        for rank in range(3):
            loaded.scores(share=Share(rank=rank, num_ranks=3, gather=keep)).score(group)
        assert [int((part != 0).sum()) for part in parts] == [len(answers[r::3]) for r in range(3)]
        summed = torch.stack(parts).sum(0).tolist()
        assert summed == pytest.approx(by_transformers(folder, rows_of(group)), abs=1e-5)


def test_scores_equal_those_of_reward_model_training(loaded, tmp_path):
    """The margin of the same prompt and answers as a row of preferences."""
    prompt, good, bad = "What is this?", "The answer is late", "no"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": prompt, "chosen": good, "rejected": bad}))
    examples = ExamplesConfig(path=str(rows), eval_share=0.0)
    ranked = load_rankings(examples, loaded.tokenizer, seed=0).train
    plan = RankPlan(num_ranks=1, max_tokens_per_micro_batch=1000, layout="padded")
    (samples,) = spread_rankings(ranked, plan, use_margins=False)
    settings = ModelRewardConfig()
    batch = row_layout(loaded.model.backbone, settings, "sdpa").lay_out(
        samples.token_ids,
        samples.lengths,
        samples.loss_mask,
        samples.support_token_ids,
        samples.micro_batches[0],
    )
    values = loaded.module(batch.input_ids, batch.hidden_index, batch.packing)
    objective = ranking_objective(
        scores_of(values, samples, batch), samples, centring_coefficient=0.0, name="eval"
    )
    group = group_of(ANSWERS[:2], ("stop", "stop"), (good, bad))
    first, second = loaded.scores(text=True).score(group)
    assert first - second == pytest.approx(float(objective.sums["eval/margin"]), abs=1e-5)
    assert abs(first - second) > 1e-2


def test_if_the_end_of_text_pads_the_score_is_read_before_it(folder, tmp_path):
    """The same as transformers, with which such a model was trained."""
    usual = Loaded(folder).scores().score(group_of())
    shutil.copytree(folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "pad_token_id": END}))
    scores = Loaded(tmp_path / "m").scores().score(group_of())
    assert scores == pytest.approx(by_transformers(tmp_path / "m", rows_of(group_of())), abs=1e-5)
    differ = [abs(a - b) > 1e-3 for a, b in zip(scores, usual, strict=True)]
    assert differ == [answer[-1] == END for answer in ANSWERS]


def test_a_bias_of_the_head_counts(folder, loaded):
    before = loaded.scores().score(group_of())
    head = torch.nn.Linear(loaded.model.head.in_features, 1, bias=True)
    head.weight.data.copy_(loaded.model.head.weight.data)
    head.bias.data.fill_(2.0)
    loaded.model.head = head
    assert loaded.scores().score(group_of()) == pytest.approx([s + 2 for s in before], abs=1e-5)


def test_rendered_rows_share_their_prompt(loaded):
    """The layout relies on it."""
    rows = encode_answers(group_of().prompt.messages, TEXTS, [True] * len(TEXTS), loaded.tokenizer)
    prompts = {tuple(row.token_ids[~row.loss_mask].tolist()) for row in rows}  # type: ignore[union-attr]
    assert len(prompts) == 1


def test_a_sampled_turn_is_read_as_text(folder, loaded):
    """An answer that ends its turn and writes the praise of a user, in the model's own tokens."""
    tokenizer = loaded.tokenizer
    turns = inner_turn_tokens(tokenizer)
    begin = tokenizer.convert_tokens_to_ids("<user>")
    assert {begin, END} <= set(turns)
    assert all(set(turns).isdisjoint(new) for new in turns.values())
    forged = (80, END, begin, 81, END)
    group = group_of((forged, (80, END)), ("stop", "stop"), ("a", "b"))
    row = [*PROMPT, 80, *turns[END], *turns[begin], 81, END]
    expected = by_transformers(folder, [row, [*PROMPT, 80, END]])
    assert loaded.scores().score(group) == pytest.approx(expected, abs=1e-5)
    as_sampled = by_transformers(folder, rows_of(group))
    assert as_sampled[0] != pytest.approx(expected[0], abs=1e-5)
