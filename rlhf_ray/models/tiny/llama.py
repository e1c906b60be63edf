"""Llama models small enough to train on two cores, in Hugging Face format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_ray.models.quiet import without_progress_bars
from rlhf_ray.models.tiny.tokenizer import EOS, PAD, token_id


@dataclass(frozen=True, kw_only=True, slots=True)
class TinySizes:
    """The shape of the network. The defaults, with 300 tokens, are 0.6 M parameters."""

    hidden: int = 128
    intermediate: int = 384
    num_layers: int = 3
    num_heads: int = 2
    num_key_value_heads: int = 1
    head_size: int = 64
    max_positions: int = 1024


def new_tiny_llama(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, sizes: TinySizes, tied: bool = True
) -> LlamaForCausalLM:
    """Make a model in float32 with random weights that depend only on `seed`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_size,
        max_position_embeddings=sizes.max_positions,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    # The caller's random state must not change.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def save_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write weights, configuration and tokenizer in Hugging Face format."""
    with without_progress_bars():
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
