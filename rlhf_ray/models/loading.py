"""Tokenizer, policy and scalar-head models from a folder or a hub name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.data.template_time import freeze_time
from rlhf_ray.models.checks.config_file import load_model_config
from rlhf_ray.models.checks.whole_model import is_classifier
from rlhf_ray.models.location import check_location, choose_template, explained
from rlhf_ray.models.quiet import without_progress_bars
from rlhf_ray.models.saving.generation_settings import mend_generation_settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_MAX_NAMES = 5


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, with the configured chat template and a padding token.

    Chats are rendered at `model.template_time`, if it is set. Without its own padding token, the
    end-of-text token pads: padding is masked everywhere, so that any token serves.

    Raises:
        RequestError: the tokenizer cannot be read, has no end-of-text token, or has tokens without
            an embedding in the model.
    """
    path = model.tokenizer_path or model.path
    key = "model.tokenizer_path" if model.tokenizer_path else "model.path"
    check_location(path, key, needs_config=False)
    with explained(path, key, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise RequestError(
            f"the tokenizer of {path} has no end-of-text token, so that no response could ever "
            "end; set eos_token in its tokenizer_config.json, or model.tokenizer_path to another"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.chat_template is not None:
        tokenizer.chat_template = choose_template(tokenizer.chat_template, model.chat_template)
    if model.template_time is not None:
        freeze_time(tokenizer, model.template_time)
    _check_vocabulary(tokenizer, path, load_model_config(model))
    return tokenizer


def load_policy(model: ModelConfig, *, dtype: str) -> PreTrainedModel:
    """Load a causal language model with all its weights, on the CPU.

    Args:
        dtype: "float32" or "bfloat16".

    Raises:
        RequestError: the model cannot be read, or weights are missing.
    """
    return _load_weights(AutoModelForCausalLM, model, dtype, "a causal language model")


def empty_policy(model: ModelConfig, *, dtype: str | None = None) -> PreTrainedModel:
    """Make a causal language model without weights, on the device "meta".

    Args:
        dtype: "float32" or "bfloat16", for a model that gets its weights later, the same as one of
            `load_policy`; None for its layers and their names alone.

    Raises:
        RequestError: the configuration cannot be read, or is of no such model.
    """
    return _empty(AutoModelForCausalLM, model, "a causal language model", dtype=dtype)


class ScalarHeadModel(nn.Module):
    """Backbone of a language model with one score per token: a critic or a reward model."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores [B, T] of `input_ids` [B, T]."""
        output = self.backbone(input_ids, attention_mask=attention_mask, use_cache=False)
        return self.head(output.last_hidden_state)[..., 0]


def load_scalar_head(model: ModelConfig, *, dtype: str) -> ScalarHeadModel:
    """Load a backbone with a scalar head, on the CPU.

    A sequence classifier with one label (a reward model) keeps its head. Any other model gets a
    head of zeros, so that a critic predicts 0 for every state and the first advantages are the
    returns themselves. Random weights would add noise of the size of the rewards (hidden states
    have a norm of sqrt(hidden size) after the last layer), and the policy would follow that noise
    before the critic has learned anything. The head is linear, so that it gets a gradient from the
    first step on, and the backbone from the second.

    Raises:
        RequestError: the model cannot be read, weights are missing, or it is a classifier with
            several labels.
    """
    config = load_model_config(model)
    if _is_classifier(model, config):
        what = "a sequence classifier"
        loaded = _load_weights(AutoModelForSequenceClassification, model, dtype, what)
        return _split_classifier(model, loaded)
    backbone = _load_weights(AutoModel, model, dtype, "a language model")
    head = nn.Linear(
        backbone.config.get_text_config().hidden_size, 1, bias=False, dtype=DTYPES[dtype]
    )
    nn.init.zeros_(head.weight)
    return ScalarHeadModel(backbone, head)


def empty_scalar_head(model: ModelConfig, *, dtype: str | None = None) -> ScalarHeadModel:
    """Make a backbone with a scalar head without weights; see `empty_policy`.

    Raises:
        RequestError: the configuration cannot be read, is of no such model, or is of a classifier
            with several labels.
    """
    config = load_model_config(model)
    if _is_classifier(model, config):
        what = "a sequence classifier"
        empty = _empty(AutoModelForSequenceClassification, model, what, dtype=dtype)
        return _split_classifier(model, empty)
    backbone = _empty(AutoModel, model, "a language model", dtype=dtype)
    size = backbone.config.get_text_config().hidden_size
    head = nn.Linear(size, 1, bias=False, device="meta", dtype=backbone.dtype)
    return ScalarHeadModel(backbone, head)


def _empty(auto_class: Any, model: ModelConfig, what: str, *, dtype: str | None) -> PreTrainedModel:
    config = load_model_config(model)
    # A model that only names its layers may be made where its attention kernel is not installed.
    more = {} if dtype is None else _computing(model, dtype)
    with explained(model.path, "model.path", what), torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=model.trust_remote_code, **more)


def _computing(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Arguments of transformers for a model that computes."""
    if dtype not in DTYPES:
        raise RequestError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return {"dtype": DTYPES[dtype], "attn_implementation": model.attention}


def _is_classifier(model: ModelConfig, config: PreTrainedConfig) -> bool:
    """Whether the model is a classifier; one with several labels is refused."""
    if not is_classifier(config):
        return False
    if config.num_labels != 1:
        raise RequestError(
            f"{model.path} is a classifier with {config.num_labels} labels; a scalar head has 1. "
            "Name a model with one label, or a language model"
        )
    return True


def _split_classifier(model: ModelConfig, classifier: PreTrainedModel) -> ScalarHeadModel:
    backbone = classifier.base_model
    assert isinstance(backbone, PreTrainedModel)
    heads = [child for _, child in classifier.named_children() if child is not backbone]
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise RequestError(
            f"the head of {type(classifier).__name__} in {model.path} is not a single linear "
            f"layer but {[type(head).__name__ for head in heads]}; it cannot score every token. "
            "Name another model"
        )
    return ScalarHeadModel(backbone, heads[0])


def _load_weights(auto_class: Any, model: ModelConfig, dtype: str, what: str) -> PreTrainedModel:
    """Load, and refuse missing weights, which transformers initialises with only a warning."""
    check_location(model.path, "model.path", needs_config=True)
    computing = _computing(model, dtype)
    with explained(model.path, "model.path", what), without_progress_bars():
        loaded, info = auto_class.from_pretrained(
            model.path,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            **computing,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
        raise RequestError(
            f"{model.path} does not hold all weights of {what} ({type(loaded).__name__}): "
            f"{', '.join(missing[:_MAX_NAMES])}{more} are missing and would be random. "
            "Is the folder complete, and of this kind of model?"
        )
    # The driver has told of it, before the run: see `saving.trial`.
    mend_generation_settings(loaded)
    return loaded


def _check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, path: str, config: PreTrainedConfig
) -> None:
    """Refuse ids without an embedding, which would end a run later with an obscure error."""
    num_embeddings = config.get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= num_embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise RequestError(
            f"the tokenizer of {path} has ids up to {largest} ({token!r}), but the model has "
            f"{num_embeddings} embeddings; take the tokenizer that belongs to the model"
        )
    if largest < 0:
        raise RequestError(
            f"the tokenizer of {path} has no tokens: its files are incomplete; copy them again"
        )
