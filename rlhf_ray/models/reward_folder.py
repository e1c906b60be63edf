"""Conversion of a scalar-head model to a sequence classifier with one label, for saving."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.loading import ScalarHeadModel

_BACKBONE, _HEAD = "backbone.", "head."


def new_classifier(
    model: ScalarHeadModel, weight_names: Collection[str], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Make a classifier of the same configuration without weights, which can write a folder.

    Args:
        weight_names: names of the weights to write, as `classifier_names` takes them.

    Raises:
        RequestError: transformers has no such classifier, or its head differs.
    """
    config = copy.deepcopy(model.backbone.config)
    config.num_labels = 1
    config.pad_token_id = padding_token(tokenizer)
    kind = type(config).__name__
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(
                config, dtype=model.backbone.dtype
            )
    except ValueError as error:
        raise RequestError(
            f"transformers has no sequence classifier for {kind}, so that a reward model of this "
            f"kind could not be saved; start from another model"
        ) from error
    names = classifier_names(classifier)
    missing = {names(name) for name in weight_names} ^ set(classifier.state_dict())
    if missing:
        raise RequestError(
            f"the sequence classifier of {kind} has other weights than a backbone with one linear "
            f"layer ({', '.join(sorted(missing)[:5])}); start from another model"
        )
    return classifier


def classifier_names(classifier: PreTrainedModel) -> Callable[[str], str]:
    """Translation of the names of a `ScalarHeadModel`'s weights to those of the classifier."""
    backbone = classifier.base_model
    heads = [
        name
        for name, child in classifier.named_children()
        if child is not backbone and isinstance(child, nn.Linear)
    ]
    if len(heads) != 1:
        raise RequestError(
            f"the head of {type(classifier).__name__} is not a single linear layer; start from "
            f"another model"
        )

    def name_of(name: str) -> str:
        if name.startswith(_BACKBONE):
            return f"{classifier.base_model_prefix}.{name.removeprefix(_BACKBONE)}"
        return f"{heads[0]}.{name.removeprefix(_HEAD)}"

    return name_of


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A padding token that cannot end an answer.

    A sequence classifier of transformers scores the last token that is not padding. If the token
    that ends an answer also pads, the classifier would score the answer without its end. None if
    the tokenizer has no other token for it: transformers then only scores one answer at a time.
    """
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    end = tokenizer.eos_token_id
    others = (token for token in candidates if isinstance(token, int) and token != end)
    return next(others, None)
