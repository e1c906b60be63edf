"""Ends of generation in the settings of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.data.tokens.turn_ends import TurnEnd
from rlhf_ray.generation.harness import turn_end_arguments
from rlhf_ray.generation.server.openai_server import with_template_text, with_turn_ends
from rlhf_ray.models.saving.generation_ends import (
    add_ends,
    added_line,
    engine_tokenizer,
    missing_ends,
    read_ends,
    stops_line,
)
from rlhf_ray.models.tiny.tokenizer import token_id
from rlhf_ray.testing.turns import TEXT_END, TURN_END, two_ends_model, two_ends_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return two_ends_model(tmp_path_factory.mktemp("two_ends"))


@pytest.fixture
def folder(tmp_path, base) -> Path:
    """A folder with the settings of the base alone."""
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    return tmp_path


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "generation_config.json").read_text())


def named(folder: Path, **values) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


def ids_of(*tokens: str) -> tuple[int, ...]:
    tokenizer = two_ends_tokenizer()
    return tuple(token_id(tokenizer, token) for token in tokens)


def test_an_end_joins_those_of_the_base(folder) -> None:
    add_ends(folder, ids_of(TURN_END))
    assert tuple(settings_of(folder)["eos_token_id"]) == ids_of(TEXT_END, TURN_END)
    loaded = GenerationConfig.from_pretrained(folder)
    assert loaded.eos_token_id == list(ids_of(TEXT_END, TURN_END))


@pytest.mark.parametrize("known", [7, [7, 9]])
def test_none_is_lost_and_none_is_there_twice(folder, known) -> None:
    named(folder, eos_token_id=known, temperature=0.6, pad_token_id=3)
    add_ends(folder, [9, 7])
    assert settings_of(folder) == {"eos_token_id": [7, 9], "temperature": 0.6, "pad_token_id": 3}


def test_generation_stops_there(base, tmp_path) -> None:
    """A model that says nothing but the end of a turn stops after one of them."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), two_ends_tokenizer()
    (end,) = ids_of(TURN_END)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[end] = model.model.norm.weight * 0
        model.lm_head.bias = torch.nn.Parameter(10.0 * (torch.arange(len(tokenizer)) == end))
    model.config.tie_word_embeddings = False
    model.generation_config.max_new_tokens = 5

    def num_new(folder) -> int:
        model.generation_config = GenerationConfig.from_pretrained(folder)
        prompt = torch.tensor([[5, 6]])
        mask = torch.ones_like(prompt)
        found = model.generate(prompt, attention_mask=mask, max_new_tokens=5, do_sample=False)
        return found.shape[1] - 2

    model.generation_config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    assert num_new(tmp_path) == 5
    add_ends(tmp_path, [end])
    assert num_new(tmp_path) == 1


def test_known_ends_change_nothing(folder) -> None:
    before = (folder / "generation_config.json").read_bytes()
    add_ends(folder, ids_of(TEXT_END))
    assert (folder / "generation_config.json").read_bytes() == before


def test_settings_are_made_of_the_configuration_where_there_are_none(folder) -> None:
    (folder / "generation_config.json").unlink()
    add_ends(folder, [9])
    assert tuple(settings_of(folder)["eos_token_id"]) == (*ids_of(TEXT_END), 9)


def test_settings_without_an_end_get_one(folder) -> None:
    named(folder, temperature=0.6)
    add_ends(folder, [9])
    assert settings_of(folder)["eos_token_id"] == 9


def test_an_adapter_gets_the_settings(folder) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    add_ends(folder, ids_of(TURN_END))
    assert settings_of(folder / "adapter") == settings_of(folder)


def test_ends_are_read_from_the_configuration_too(folder) -> None:
    model = ModelConfig(path=str(folder))
    assert read_ends(model) == ids_of(TEXT_END)
    (folder / "generation_config.json").unlink()
    assert read_ends(model) == ids_of(TEXT_END)


def test_what_is_said(base) -> None:
    model, tokenizer = ModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base)
    end = TurnEnd(token_id=ids_of(TURN_END)[0], text=TURN_END, count=40)
    line = added_line([end], model, tokenizer)
    assert line is not None
    assert f"{TURN_END!r} (40)" in line
    assert f"stop at {TEXT_END!r}" in line
    known = TurnEnd(token_id=ids_of(TEXT_END)[0], text=TEXT_END, count=1)
    assert added_line([known], model, tokenizer) is None
    assert added_line([], model, tokenizer) is None
    assert TURN_END in (stops_line(model, tokenizer) or "")


def test_only_ends_that_nothing_names_are_missing(folder) -> None:
    model, tokenizer = ModelConfig(path=str(folder)), two_ends_tokenizer()
    assert missing_ends(model, tokenizer) == ids_of(TURN_END)
    add_ends(folder, ids_of(TURN_END))
    assert missing_ends(model, tokenizer) == ()
    assert stops_line(model, tokenizer) is None


class TestServer:
    """The generation settings that a server is started with."""

    def arguments(self, base, tmp_path, **more):
        known = {"model": str(base), "tokenizer": str(base), "uds": str(tmp_path / "0.sock")}
        return {**known, **more}

    def test_the_end_of_a_turn_is_named(self, base, tmp_path, capsys) -> None:
        found = with_turn_ends(self.arguments(base, tmp_path))
        served = GenerationConfig.from_pretrained(found["generation_config"])
        assert served.eos_token_id == list(ids_of(TEXT_END, TURN_END))
        assert TURN_END in capsys.readouterr().out

    def test_settings_that_name_it_are_served_as_they_are(self, base, tmp_path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base)
        model.save_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "model")
        add_ends(tmp_path / "model", ids_of(TURN_END))
        arguments = self.arguments(tmp_path / "model", tmp_path)
        assert with_turn_ends(arguments) == arguments

    def test_the_users_own_settings_win(self, base, tmp_path) -> None:
        arguments = self.arguments(base, tmp_path, generation_config="vllm")
        assert with_turn_ends(arguments) == arguments

    def test_a_template_of_a_file(self, base, tmp_path) -> None:
        template = tmp_path / "t.jinja"
        template.write_text("{% for m in messages %}{{ m.content + '<|endoftext|>' }}{% endfor %}")
        arguments = self.arguments(base, tmp_path, chat_template=str(template))
        assert with_turn_ends(arguments) == arguments


def test_the_harness_stops_at_the_end_of_a_turn_too(base, tmp_path) -> None:
    found = turn_end_arguments(ModelConfig(path=str(base)), str(base), tmp_path / "settings")
    used = GenerationConfig.from_pretrained(found["generation_config"])
    assert used.eos_token_id == list(ids_of(TEXT_END, TURN_END))
    # Another template, which ends turns with the end of text, needs no more.
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content + '<|endoftext|>' }}{% endfor %}")
    model = ModelConfig(path=str(base), chat_template=str(template))
    assert turn_end_arguments(model, str(base), tmp_path / "none") == {}


def test_a_named_template_is_served_by_its_text(base, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = {"default": "{{ 'a' }}", "rag": "{{ 'b' }}"}
    tokenizer.save_pretrained(tmp_path)
    arguments = {"model": str(base), "tokenizer": str(tmp_path)}
    for name, text in tokenizer.chat_template.items():
        assert with_template_text({**arguments, "chat_template": name})["chat_template"] == text
        found = engine_tokenizer(str(tmp_path), trust_remote_code=False, chat_template=name)
        assert found.chat_template == text
    given = {**arguments, "chat_template": "{{ messages }}"}
    assert with_template_text(given) == given
    assert with_template_text(arguments) == arguments
    with pytest.raises(RequestError, match=r"own templates are 'default', 'rag'$"):
        with_template_text({**arguments, "chat_template": "tools"})


def test_a_template_may_be_a_file_or_a_text(base, tmp_path) -> None:
    def template_of(chat_template):
        found = engine_tokenizer(str(base), trust_remote_code=False, chat_template=chat_template)
        return found.chat_template

    (tmp_path / "t.jinja").write_text("from a file")
    assert template_of(str(tmp_path / "t.jinja")) == "from a file"
    assert template_of("{{ messages }}") == "{{ messages }}"
    assert TURN_END in template_of(None)
