"""stage=export: the folder is a model like any other, and says where it comes from."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.models.card import licence_note, read_origin
from rlhf_ray.models.saving.generation_ends import add_ends
from rlhf_ray.stages.deploy.export import run
from rlhf_ray.testing.tiny import tiny_random
from rlhf_ray.testing.turns import TEXT_END, TURN_END, two_ends_model

pytestmark = pytest.mark.unit_slow

TOKEN_IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def trained(tmp_path):
    """What a run leaves: its configuration, its summary and the model."""
    folder = tmp_path / "run"
    tiny_random(folder / "model")
    config = load_config(["recipe=demo", "model.path=some/base", "num_steps=7"])
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "summary.json").write_text(json.dumps({"reward_last": 0.875, "nested": {"a": 1}}))
    return folder


def export(tmp_path, *overrides):
    output = tmp_path / "exported"
    common = ["recipe=demo", "stage=export", f"output_dir={output}", "export.licence=mit"]
    assert run(load_config([*common, *overrides])) == 0
    return output / "model"


def logits_of(folder, **options):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, **options)(TOKEN_IDS).logits


def test_weights_tokenizer_and_generation(trained, tmp_path):
    found = export(tmp_path, f"model.path={trained / 'model'}", "generation.temperature=0.6")
    torch.testing.assert_close(logits_of(found), logits_of(trained / "model"))
    before, after = (AutoTokenizer.from_pretrained(f) for f in (trained / "model", found))
    assert after.chat_template == before.chat_template
    assert after("What is this?").input_ids == before("What is this?").input_ids
    generation = GenerationConfig.from_pretrained(found)
    assert generation.temperature == 0.6
    assert generation.do_sample
    # The limit of the training's answers is not one of the user's.
    assert generation.max_new_tokens is None
    assert generation.eos_token_id == before.eos_token_id
    assert not (found.parent / "model.partial").exists()


def test_the_end_of_a_turn_is_named(tmp_path):
    found = export(tmp_path, f"model.path={two_ends_model(tmp_path / 'base')}")
    tokenizer = AutoTokenizer.from_pretrained(found)
    ends = GenerationConfig.from_pretrained(found).eos_token_id
    assert [tokenizer.decode([end]) for end in ends] == [TEXT_END, TURN_END]


def test_the_card(trained, tmp_path):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "table.md").write_text(
        "| | sft | rl |\n| :- | -: | -: |\n| reward | 0.5 | 0.9 |\n"
    )
    found = export(
        tmp_path,
        f"model.path={trained / 'model'}",
        f"export.evaluation_dir={evaluation}",
        "export.name=Sums",
        "export.language=[en]",
    )
    card = ModelCard.load(found / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["language"]) == ("mit", "some/base", ["en"])
    for text in (
        "# Sums",
        "Trained from: some/base",
        "- num_steps: 7",
        "- reward: exact_match",
        "- reward_last: 0.875",
        "| reward | 0.5 | 0.9 |",
        "training_config.yaml",
    ):
        assert text in card.text
    # A key of other stages, which the run did not read.
    assert "fit.num_epochs" not in card.text
    written = (trained / "config.yaml").read_text()
    (own,) = [line for line in written.splitlines() if line.startswith("output_dir: /")]
    told = (found / "training_config.yaml").read_text()
    assert told == written.replace(own, f"output_dir: {own.rpartition('/')[2]}")
    # Where things lay on the machine is nobody's business.
    assert str(tmp_path) not in card.text


def test_the_card_has_no_lines_about_nothing(trained, tmp_path):
    config = ["stage=sft", "model.path=some/base", f"examples.path={tmp_path}/answers.jsonl"]
    (trained / "config.yaml").write_text(to_yaml(load_config(config)))
    card = (export(tmp_path, f"model.path={trained / 'model'}") / "README.md").read_text()
    assert "- examples: answers.jsonl" in card
    assert "- prompts:" not in card
    assert "- reward:" not in card
    assert "not known" not in card


def test_a_model_of_which_nothing_is_known(trained, tmp_path):
    (trained / "config.yaml").unlink()
    card = (export(tmp_path, f"model.path={trained / 'model'}") / "README.md").read_text()
    assert "Trained from: not known\n\n## Data\n\nnot known\n" in card


@pytest.mark.parametrize("licence", ["apache-2.0", "MIT", "cc-by-nc-4.0", "mit OR apache-2.0"])
def test_known_licences(licence):
    assert licence_note(licence) is None
    assert licence_note("other") is None


def test_another_licence_is_said(trained, tmp_path, capsys):
    found = export(tmp_path, f"model.path={trained / 'model'}", "export.licence=apach-2.0")
    assert "export.licence=apach-2.0 is no SPDX identifier" in capsys.readouterr().out
    assert ModelCard.load(found / "README.md").data.to_dict()["license"] == "apach-2.0"


def test_names_and_no_paths(trained, tmp_path):
    """Where things lay on the machine is private: in the card and in the configuration."""
    base = tmp_path / "private" / "Sums-1B" / "model"
    rewards = f"[{{path: {tmp_path}/rewards/mine.py:score}}]"
    overrides = [f"model.path={base}", f"data.path={tmp_path}/rows/sums.jsonl"]
    overrides += [f"reward.functions={rewards}", "num_steps=7"]
    (trained / "config.yaml").write_text(to_yaml(load_config(["recipe=demo", *overrides])))
    found = export(tmp_path, f"model.path={trained / 'model'}")
    card = (found / "README.md").read_text()
    for text in (
        "# Sums-1B-rl",
        "Trained from: Sums-1B",
        "- prompts: sums.jsonl",
        "- reward: mine.py:score",
    ):
        assert text in card
    told = (found / "training_config.yaml").read_text()
    for text in (card, told):
        assert str(tmp_path) not in text
        assert "private" not in text
    assert "sums.jsonl" in told
    assert "num_steps: 7" in told


def test_an_adapter_is_merged(trained, tmp_path):
    base = trained / "model"
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    found = export(tmp_path, f"model.path={tmp_path / 'adapter'}")
    with torch.no_grad():
        whole = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
        )
        expected = whole(TOKEN_IDS).logits
    torch.testing.assert_close(logits_of(found), expected, rtol=1e-4, atol=1e-5)
    assert float((logits_of(base) - expected).abs().max()) > 1e-3
    assert AutoTokenizer.from_pretrained(found).chat_template
    assert not (found / "adapter_config.json").exists()


def test_every_end_is_kept(trained, tmp_path):
    """Those of the settings, and the end of text of the tokenizer."""
    add_ends(trained / "model", [7, 9])
    found = export(tmp_path, f"model.path={trained / 'model'}")
    tokenizer = AutoTokenizer.from_pretrained(found)
    generation = GenerationConfig.from_pretrained(found)
    assert set(generation.eos_token_id) == {7, 9, tokenizer.eos_token_id}


def test_the_ends_of_an_adapter(trained, tmp_path):
    """The base does not name an end that the adapter has learnt."""
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(trained / "model"),
        LoraConfig(r=4, target_modules=["q_proj"]),
    )
    adapted.save_pretrained(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.json").write_text("{}")
    add_ends(tmp_path / "run", [7])
    found = export(tmp_path, f"model.path={tmp_path / 'run' / 'adapter'}")
    tokenizer = AutoTokenizer.from_pretrained(found)
    generation = GenerationConfig.from_pretrained(found)
    assert set(generation.eos_token_id) == {7, tokenizer.eos_token_id}


def test_another_number_format(trained, tmp_path):
    found = export(tmp_path, f"model.path={trained / 'model'}", "export.dtype=bfloat16")
    assert AutoModelForCausalLM.from_pretrained(found, dtype="auto").dtype == torch.bfloat16
    assert "in bfloat16" in (found / "README.md").read_text()


def test_what_cannot_be_saved_fails_before_the_weights_are_read(trained, tmp_path, monkeypatch):
    def load(*_, **__):
        raise AssertionError("the weights would be read here")

    monkeypatch.setattr("rlhf_ray.models.merged.load_merged", load)
    monkeypatch.setattr(
        "rlhf_ray.stages.deploy.export._generation",
        lambda *_: GenerationConfig(temperature=0.5),
    )
    with pytest.raises(RequestError, match="could not be saved, because of its configuration"):
        export(tmp_path, f"model.path={trained / 'model'}")
    assert not (tmp_path / "exported").exists()


def test_a_missing_evaluation_says_how_it_is_made(trained, tmp_path):
    with pytest.raises(RequestError, match="stage=evaluate"):
        export(tmp_path, f"model.path={trained / 'model'}", f"export.evaluation_dir={tmp_path}/no")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
@pytest.mark.parametrize("text", ["[1]", "null", "3", "[" * 100_000, "\x00"])
def test_a_damaged_record_of_the_run_is_refused(trained, name, text):
    (trained / name).write_text(text)
    with pytest.raises(RequestError, match=rf"{name} (holds a|cannot be read)"):
        read_origin(trained)


@pytest.mark.parametrize("damage", ["lost", "renamed", "more"])
def test_an_adapter_that_does_not_fit_is_refused(damage, trained, tmp_path):
    """peft merges what fits, and at most warns of the rest."""
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(trained / "model"),
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    )
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    taken = weights[name].clone() if damage == "more" else weights.pop(name)
    if damage != "lost":
        weights[name.replace("layers.0", "layers.7")] = taken
    save_file(weights, file)
    with pytest.raises(RequestError, match=r"files of the adapter (lack|have more)"):
        export(tmp_path, f"model.path={folder}")
    assert not (tmp_path / "exported" / "model").exists()
