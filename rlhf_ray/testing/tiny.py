"""Tiny model folders for tests, made in a fraction of a second.

The models are untrained: their answers make no sense, but they load in transformers and in vLLM
like any other model. See `rlhf_ray.models.builtin` for a tiny trained model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForSequenceClassification, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rlhf_ray.models.reward_normalization import RewardNormalization, write_normalization
from rlhf_ray.models.tiny.llama import TinySizes, new_tiny_llama, save_folder
from rlhf_ray.models.tiny.tokenizer import ASSISTANT, EOS, PAD, token_id, train_tokenizer

TINY = TinySizes(hidden=64, intermediate=128, num_layers=2)

_TEXTS = (
    "What is the sum of these numbers?",
    "The answer to the question is not known to them.",
    "Where is my order, and when will that be here?",
    "Thank you for the question. We are sorry that this is late.",
)


def tiny_random(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = True,
    vocab_size: int = 320,
    sizes: TinySizes = TINY,
) -> Path:
    """Write an untrained Llama and a byte-level tokenizer with a chat template to `folder`.

    Args:
        seed: seed of the weights; the tokenizer is always the same.
        tied: whether input embedding and head share their weights.
        vocab_size: largest vocabulary; at least 260 (bytes and specials).

    Returns:
        `folder`.
    """
    tokenizer = train_tokenizer(_TEXTS, vocab_size=vocab_size)
    model = new_tiny_llama(tokenizer, seed=seed, sizes=sizes, tied=tied)
    save_folder(folder, model, tokenizer)
    return folder


def tiny_mixture(folder: Path, *, seed: int = 0, num_experts: int = 4) -> Path:
    """Write an untrained mixture of experts (Qwen3-MoE) with the tokenizer of `tiny_random`.

    Args:
        num_experts: experts per layer, of which each token takes two.

    Returns:
        `folder`.
    """
    tokenizer = train_tokenizer(_TEXTS, vocab_size=320)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=TINY.hidden,
        intermediate_size=TINY.intermediate,
        # vLLM's kernel for experts on a CPU wants multiples of 32.
        moe_intermediate_size=64,
        num_hidden_layers=TINY.num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=num_experts,
        num_experts_per_tok=2,
        # Five times the usual: at this size the experts would hardly change a log-probability.
        initializer_range=0.1,
        tie_word_embeddings=False,
        max_position_embeddings=TINY.max_positions,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(config).float()
    save_folder(folder, model, tokenizer)
    return folder


def tiny_reward_model(
    folder: Path,
    *,
    seed: int = 0,
    vocab_size: int = 320,
    sizes: TinySizes = TINY,
    normalization: RewardNormalization | None = None,
) -> Path:
    """Write a classifier with one label and random weights, with the tokenizer of `tiny_random`.

    Args:
        normalization: written to the folder too; None writes none.

    Returns:
        `folder`.
    """
    tokenizer = train_tokenizer(_TEXTS, vocab_size=vocab_size)
    config = new_tiny_llama(tokenizer, seed=seed, sizes=sizes).config
    config.num_labels = 1
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config).float()
        torch.nn.init.normal_(model.score.weight)
    save_folder(folder, model, tokenizer)
    if normalization is not None:
        write_normalization(folder, normalization)
    return folder


def tiny_without_round_trip(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write the model of `tiny_random` with a tokenizer that loses ids between decode and encode.

    The tokenizer folds case before it encodes, but has ids for capital letters, which a model can
    sample: `encode(decode(ids))` then has other ids, and `decode(encode(text))` is other text. A
    system that passes text where it should pass ids trains on tokens that were never sampled.
    """
    tokenizer = train_tokenizer(_TEXTS, vocab_size=320, lowercase=True)
    model = new_tiny_llama(tokenizer, seed=seed, sizes=TINY, tied=tied)
    save_folder(folder, model, tokenizer)
    return folder


def tiny_that_says(folder: Path, word: str) -> Path:
    """Write a Llama with the tokenizer of `tiny_random` that answers every prompt with one token.

    Its layers add nothing, so that the next token depends only on the last one: the word follows
    the beginning of an answer, and the end of text follows the word.

    Args:
        word: one token of the tokenizer, such as a digit.

    Returns:
        `folder`.
    """
    tokenizer = train_tokenizer(_TEXTS, vocab_size=320)
    model = new_tiny_llama(tokenizer, seed=0, sizes=TINY, tied=True)
    (spoken,) = tokenizer(word, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        table: Any = model.get_input_embeddings()
        embeddings = table.weight.zero_()
        # With tied embeddings, the next token is the one with the largest product with the last.
        embeddings[token_id(tokenizer, ASSISTANT), 0] = 1
        embeddings[spoken, :2] = torch.tensor([2.0, 3.0])
        embeddings[token_id(tokenizer, EOS), 1] = 5
    save_folder(folder, model, tokenizer)
    return folder
