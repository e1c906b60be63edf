"""Compressed forms stop at the ends of a turn that the chosen template has."""

from __future__ import annotations

import json

from rlhf_ray.data.tokens.turn_ends import engine_ends
from rlhf_ray.stages.deploy.compress_run import name_ends
from rlhf_ray.testing.turns import two_ends_tokenizer


def test_every_form_that_was_made_names_the_ends(tmp_path):
    tokenizer = two_ends_tokenizer()
    settings = tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    name_ends([tmp_path, None], tokenizer)
    named = json.loads(settings.read_text())["eos_token_id"]
    assert named == list(dict.fromkeys([tokenizer.eos_token_id, *engine_ends(tokenizer)]))
    assert len(named) == 2
