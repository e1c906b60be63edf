"""A tiny model whose texts end with one token, and whose turns with another.

Many base models are like this: `<|endoftext|>` ends their texts, and `<|im_end|>` the turns of a
chat. Their generation settings name the first one only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_ray.models.tiny.llama import save_folder
from rlhf_ray.models.tiny.tokenizer import token_id

TEXT_END, TURN_BEGIN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def two_ends_tokenizer(
    *,
    template: str | None = CHATML,
    specials: tuple[str, ...] = (TEXT_END, TURN_BEGIN, TURN_END),
    others: tuple[str, ...] = (),
    bos: str | None = None,
    adds_end: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML's tokens.

    Args:
        template: the chat template; None for a tokenizer without one.
        others: tokens that stand for themselves, but are not marked as special.
        bos: token that the tokenizer puts before every text; None for none.
        adds_end: the tokenizer puts the end of text behind every text, too.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    all_specials = [*specials, *([bos] if bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=all_specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["What is the sum? hello user assistant"] * 9, trainer)
    raw.add_tokens(list(others))
    if bos or adds_end:
        pieces = [*([bos] if bos else []), "$A", *([TEXT_END] if adds_end else [])]
        used = [token for token in pieces if token != "$A"]
        raw.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=[(token, raw.token_to_id(token)) for token in used]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=TEXT_END,
        pad_token=TEXT_END,
        bos_token=bos,
        additional_special_tokens=list(specials),
    )
    tokenizer.chat_template = template
    return tokenizer


def two_ends_model(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write an untrained Llama with such a tokenizer; its generation settings name `TEXT_END`."""
    tokenizer = tokenizer or two_ends_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, TEXT_END),
        pad_token_id=token_id(tokenizer, TEXT_END),
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        save_folder(folder, LlamaForCausalLM(config).float(), tokenizer)
    return folder
