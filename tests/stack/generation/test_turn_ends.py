"""An engine stops at the end of a turn that only the chat template names."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from rlhf_ray.models.tiny.tokenizer import token_id
from rlhf_ray.records import Prompt
from rlhf_ray.testing.turns import TURN_END, two_ends_model, two_ends_tokenizer
from tests.stack.generation.harness import StartedEngine


def test_it_stops_at_the_end_of_a_turn(tmp_path):
    """The token is not marked as special, and is not said."""
    tokenizer = two_ends_tokenizer(specials=("<|endoftext|>",), others=("<|im_start|>", TURN_END))
    folder = two_ends_model(tmp_path / "model", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    end, word = token_id(tokenizer, TURN_END), tokenizer("hello")["input_ids"][0]
    # The prompt's last token asks for a word, and the word asks for the end of the turn.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        embeddings = torch.zeros_like(model.model.embed_tokens.weight)
        embeddings[:, 0], embeddings[word, 0], embeddings[word, 1] = 1, 0, 1
        model.model.embed_tokens.weight.copy_(embeddings)
        head = torch.zeros_like(model.lm_head.weight)
        head[word, 0], head[end, 1] = 10, 10
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    prompt = Prompt(
        prompt_id="p",
        stream_index=0,
        text="?",
        token_ids=tuple(tokenizer("?")["input_ids"]),
        answer=None,
        source="test",
        seed=0,
        columns={},
    )
    engine = StartedEngine(folder, max_response_tokens=6)
    try:
        group, failures = engine.run(engine.engine.generate(prompt, (0,)))
        assert not failures
        sampled = group.token_ids[group.loss_mask].tolist()
        assert sampled == [word, end]
        assert group.finish_reasons == ("stop",)
        assert group.responses == (tokenizer.decode([word]),)
        with engine.changed(ignore_eos=True):
            group, _ = engine.run(engine.engine.generate(prompt, (0,)))
        assert group.finish_reasons == ("length",)
    finally:
        engine.close()
