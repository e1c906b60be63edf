"""What an evaluation reads and checks before any worker starts: models, prompts, demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples import load_demonstrations
from rlhf_ray.data.prompts.load import PromptSet, load_prompts
from rlhf_ray.models.builtin import resolve_model_path
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.location import check_location
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.evaluate.settings import held_out_data
from rlhf_ray.stages.reward_checks import check_judge, with_reward_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One model that is evaluated.

    Attributes:
        prompts: as its tokenizer and template render them; the same rows for every candidate.
        demonstrations: likewise; empty where none are given.
    """

    name: str
    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    demonstrations: tuple[LabelledTokens, ...]


def read_candidates(config: Config, *, report: Report) -> tuple[Config, list[Candidate]]:
    """Every model of `evaluation.models` with its prompts; and what scores the answers of all.

    Args:
        report: takes lines for people.

    Returns:
        the configuration of what scores, whose `model` is the baseline; the candidates in order.

    Raises:
        RequestError: a model cannot be loaded, or what scores does not understand it.
        DataError: the prompts or the demonstrations cannot be read.
    """
    reference = _reference(config, report)
    found = []
    for name, path in config.evaluation.models.items():
        with _about(name):
            found.append(_read(config, name, path, report))
            _check_reference(found[-1], reference)
    candidates = _same_rows(found, report)
    config = _scoring_config(config, candidates, report)
    baseline = next(c for c in candidates if c.name == config.evaluation.baseline_name)
    check_judge(config, baseline.prompts, report=report)
    path = None if config.reference.path is None else _resolved(config, config.reference.path)
    return (
        dataclasses.replace(
            config,
            model=baseline.model,
            reference=dataclasses.replace(config.reference, path=path),
        ),
        candidates,
    )


def _read(config: Config, name: str, path: str, report: Report) -> Candidate:
    path = resolve_model_path(path, seed=config.seed, report=report)
    check_location(path, f"evaluation.models.{name}", needs_config=True)
    model = dataclasses.replace(config.model, path=path)
    tokenizer = load_tokenizer(model)
    prompts = load_prompts(held_out_data(config), tokenizer, seed=config.seed)
    return Candidate(
        name=name,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        demonstrations=load_eval_demonstrations(config, tokenizer),
    )


def load_eval_demonstrations(
    config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[LabelledTokens, ...]:
    examples = config.examples
    if examples.eval_path is None:
        return ()
    alone = dataclasses.replace(
        examples,
        path=examples.eval_path,
        split=examples.eval_split or examples.split,
        eval_path=None,
        eval_split=None,
        eval_share=0.0,
    )
    return load_demonstrations(alone, tokenizer, seed=config.seed).train


def _same_rows(candidates: Sequence[Candidate], report: Report) -> list[Candidate]:
    """With the prompts that are short enough for all of them."""
    common = set.intersection(*({p.prompt_id for p in c.prompts.prompts} for c in candidates))
    if not common:
        raise RequestError(
            "no held-out prompt is short enough for every model; raise data.max_prompt_tokens"
        )
    report(candidates[0].prompts.describe())
    same = []
    for candidate in candidates:
        kept = tuple(p for p in candidate.prompts.prompts if p.prompt_id in common)
        if left_out := len(candidate.prompts.prompts) - len(kept):
            report(f"{candidate.name}: {left_out} prompts are left out that another model lacks")
        prompts = dataclasses.replace(candidate.prompts, prompts=kept)
        same.append(dataclasses.replace(candidate, prompts=prompts))
    return same


def _scoring_config(config: Config, candidates: Sequence[Candidate], report: Report) -> Config:
    """With a reward model that understands every candidate."""
    rewards = []
    for candidate in candidates:
        own = dataclasses.replace(config, model=candidate.model)
        with _about(candidate.name):
            own = with_reward_model(own, candidate.tokenizer, candidate.prompts, report=report)
        rewards.append(own.reward)
    # It reads the texts of all where it has to read those of one.
    read_as_text = [reward for reward in rewards if reward.model.foreign_tokens == "text"]
    return dataclasses.replace(config, reward=(read_as_text or rewards)[0])


def _reference(config: Config, report: Report) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the reference; None where no divergence is measured."""
    if not config.needs_reference:
        return None
    assert config.reference.path is not None, "a rule asks for it"
    path = resolve_model_path(config.reference.path, seed=config.seed, report=report)
    check_location(path, "reference.path", needs_config=True)
    return load_tokenizer(dataclasses.replace(config.model, path=path))


def _check_reference(candidate: Candidate, reference: PreTrainedTokenizerBase | None) -> None:
    if reference is not None and candidate.tokenizer.get_vocab() != reference.get_vocab():
        raise RequestError(
            "its vocabulary is not that of reference.path, so that there is no divergence between "
            "them; leave the model out, or set evaluation.kl to none"
        )


def _resolved(config: Config, path: str) -> str:
    return resolve_model_path(path, seed=config.seed)


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say of which model an error is."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"evaluation.models.{name}: {error}") from error
