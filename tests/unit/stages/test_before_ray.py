"""Models that a stage could not train, run or save are refused before Ray starts: status 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray.cluster.runtime import session
from rlhf_ray.main import main
from rlhf_ray.stages.evaluate import run as evaluate_run
from rlhf_ray.stages.fit import run as fit_run
from rlhf_ray.stages.rl import run as rl_run
from rlhf_ray.testing.tiny import TINY, tiny_random, tiny_reward_model

pytestmark = pytest.mark.unit_slow

Run = Callable[..., tuple[int, str]]
STARTED = "Ray would start here"
# Hundreds of tokens.
LONG = "the sum of these numbers is not known to them " * 40


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_random(tmp_path / "policy")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command; Ray's start raises. Gives the status and all that was said."""

    def start(**_: object) -> None:
        raise RuntimeError(STARTED)

    for module in (fit_run, rl_run, evaluate_run, session):
        monkeypatch.setattr(module, "connected", start)

    def call(*overrides: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main([f"output_dir={tmp_path / 'out'}", *overrides])
        said = capfd.readouterr()
        return status, said.out + said.err

    return call


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rows(path: Path, *content: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def examples_of(stage: str, folder: Path, long: str = LONG) -> Path:
    if stage == "pretrain":
        return rows(folder / "rows.jsonl", {"text": "short"}, {"text": long})
    question = {"prompt": "What is it?"}
    if stage == "sft":
        return rows(folder / "rows.jsonl", question | {"answer": "no"}, question | {"answer": long})
    return rows(
        folder / "rows.jsonl",
        question | {"chosen": "yes", "rejected": "no"},
        question | {"chosen": "well", "rejected": long},
    )


def fit_stage(stage: str, model: Path, folder: Path, *overrides: str) -> tuple[str, ...]:
    return (
        f"stage={stage}",
        "training=cpu",
        f"model.path={model}",
        f"examples.path={examples_of(stage, folder)}",
        "examples.eval_share=0",
        "fit.batch_size=2",
        "fit.max_steps=1",
        "training.max_tokens_per_micro_batch=8192",
        *overrides,
    )


FIT = ("sft", "pretrain", "preference", "reward_model")


class TestPositions:
    @pytest.fixture
    def short(self, model: Path) -> Path:
        """The model with 128 positions; its weights know nothing of them."""
        edit(model / "config.json", max_position_embeddings=128)
        return model

    @pytest.mark.parametrize("stage", FIT)
    def test_longer_examples_are_cut_and_counted(
        self, run: Run, short: Path, tmp_path: Path, stage: str
    ) -> None:
        status, said = run(*fit_stage(stage, short, tmp_path))
        assert (status, STARTED in said) == (1, True), said
        assert f"examples.max_tokens=1024 is lowered to 128: {short} reads no more" in said
        longest = [int(n) for n in re.findall(r"to (\d+) tokens", said)]
        assert max(longest) <= 128
        if stage != "pretrain":
            assert "cut to examples.max_tokens: 1" in said

    @pytest.mark.parametrize(
        ("on_long", "status", "message"),
        [("skip", 1, r"too long: 1"), ("error", 2, r"and examples\.max_tokens is 128 \(what the")],
    )
    def test_other_rules_for_long_examples(
        self, run: Run, short: Path, tmp_path: Path, on_long: str, status: int, message: str
    ) -> None:
        found, said = run(*fit_stage("sft", short, tmp_path, f"examples.on_long={on_long}"))
        assert found == status
        assert re.search(message, said), said

    def test_model_that_reads_all_of_it(self, run: Run, model: Path, tmp_path: Path) -> None:
        _, said = run(*fit_stage("sft", model, tmp_path))
        assert "is lowered to" not in said
        assert STARTED in said

    def rl(self, model: Path, folder: Path, *overrides: str) -> tuple[str, ...]:
        path = rows(folder / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        return ("recipe=demo", f"model.path={model}", f"data.path={path}", *overrides)

    @pytest.mark.parametrize("role", ["model", "reference", "critic", "reward.model"])
    def test_prompt_and_response_of_rl(
        self, run: Run, short: Path, tmp_path: Path, role: str
    ) -> None:
        whole = tiny_random(tmp_path / "whole")
        reward = tiny_reward_model(tmp_path / "reward")
        settings = [f"{role}.path={short}"]
        if role == "critic":
            settings += ["algorithm=ppo"]
        if role == "reward.model":
            edit(reward / "config.json", max_position_embeddings=128)
            settings = [f"reward.model.path={reward}", "reward.model.normalize=false"]
        lengths = ["data.max_prompt_tokens=100", "generation.max_response_tokens=29"]
        status, said = run(*self.rl(whole, tmp_path, *lengths, *settings))
        assert status == 2, said
        told = "data.max_prompt_tokens=100 and generation.max_response_tokens=29 make sequences of"
        assert told in said
        assert f"but {role}.path" in said
        assert "reads at most 128 by its config.json; lower them to 128 together" in said

    def test_lengths_that_fit(self, run: Run, short: Path, tmp_path: Path) -> None:
        lengths = ["data.max_prompt_tokens=100", "generation.max_response_tokens=28"]
        status, said = run(*self.rl(short, tmp_path, *lengths))
        assert (status, STARTED in said) == (1, True), said

    def test_texts_of_ptx(self, run: Run, short: Path, tmp_path: Path) -> None:
        texts = rows(tmp_path / "texts.jsonl", {"text": LONG})
        settings = ["data.max_prompt_tokens=64", "generation.max_response_tokens=16"]
        settings += ["algorithm.ptx_coefficient=0.1", f"texts.path={texts}"]
        status, said = run(*self.rl(short, tmp_path, *settings))
        assert (status, STARTED in said) == (1, True), said
        assert "texts.max_tokens=512 is lowered to 128" in said
        assert re.search(r"texts of \d+ to 128 tokens", said), said

    def evaluate(self, run: Run, model: Path, folder: Path, *overrides: str) -> tuple[int, str]:
        path = rows(folder / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        shared = ("recipe=demo", "stage=evaluate", f"data.path={path}")
        return run(*shared, f"evaluation.models.one={model}", *overrides)

    def test_evaluation(self, run: Run, short: Path, tmp_path: Path) -> None:
        status, said = self.evaluate(run, short, tmp_path, "data.max_prompt_tokens=128")
        assert status == 2
        assert "evaluation.models.one: data.max_prompt_tokens=128 and" in said
        fitting = ("data.max_prompt_tokens=64", "generation.max_response_tokens=16")
        demonstrations = examples_of("sft", tmp_path)
        status, said = self.evaluate(
            run, short, tmp_path, *fitting, f"examples.eval_path={demonstrations}"
        )
        assert (status, STARTED in said) == (1, True), said
        assert "examples.max_tokens=1024 is lowered to 127" in said, "an engine needs one more"

    def test_served_length(self, run: Run, short: Path) -> None:
        status, said = run(
            "stage=serve", "generation=cpu", f"model.path={short}", "serve.max_model_tokens=129"
        )
        assert status == 2
        assert "serve.max_model_tokens=129" in said
        assert "reads at most 128 tokens by its config.json" in said


class TestEngine:
    @pytest.mark.parametrize("stage", ["rl", "evaluate", "serve"])
    def test_heads_without_a_kernel(self, run: Run, tmp_path: Path, stage: str) -> None:
        model = tiny_random(tmp_path / "narrow", sizes=replace(TINY, head_size=48))
        path = rows(tmp_path / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        settings = {
            "rl": ("recipe=demo", f"model.path={model}", f"data.path={path}"),
            "evaluate": ("recipe=demo", f"evaluation.models.one={model}", f"data.path={path}"),
            "serve": ("generation=cpu", f"model.path={model}"),
        }
        status, said = run(f"stage={stage}", *settings[stage])
        assert status == 2, said
        assert "attention heads of 48 dimensions, for which vLLM has no kernel on a CPU" in said


class TestFiles:
    @pytest.mark.parametrize("stage", [*FIT, "rl"])
    def test_truncated_weights(self, run: Run, model: Path, tmp_path: Path, stage: str) -> None:
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        path = rows(tmp_path / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        rl = ("recipe=demo", f"model.path={model}", f"data.path={path}")
        status, said = run(*(rl if stage == "rl" else fit_stage(stage, model, tmp_path)))
        assert status == 2, said
        assert "model.safetensors" in said
        assert "is damaged or incomplete" in said

    @pytest.mark.parametrize("role", ["reference", "critic", "reward.model", "reward.judge"])
    def test_roles(self, run: Run, model: Path, tmp_path: Path, role: str) -> None:
        broken = tiny_reward_model(tmp_path / "broken") if "reward.m" in role else None
        broken = broken or tiny_random(tmp_path / "broken")
        (broken / "model.safetensors").write_bytes(b"")
        key = "reward.judge.model" if role == "reward.judge" else f"{role}.path"
        settings = [f"{key}={broken}"]
        settings += ["algorithm=ppo"] if role == "critic" else []
        settings += ["reward.model.normalize=false"] if role == "reward.model" else []
        path = rows(tmp_path / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        status, said = run("recipe=demo", f"model.path={model}", f"data.path={path}", *settings)
        assert status == 2, said
        assert f"{key} is '{broken}': model.safetensors (0 bytes) is damaged" in said

    def test_evaluated_and_served(self, run: Run, model: Path, tmp_path: Path) -> None:
        (model / "model.safetensors").unlink()
        path = rows(tmp_path / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        for settings in (
            (
                "recipe=demo",
                "stage=evaluate",
                f"evaluation.models.one={model}",
                f"data.path={path}",
            ),
            ("stage=serve", "generation=cpu", f"model.path={model}"),
            ("stage=export", "export.licence=mit", f"model.path={model}"),
        ):
            status, said = run(*settings)
            assert status == 2, said
            assert "a folder without weights" in said

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("text", ["[]", "7", "{", '{"model_type": 3}', ""])
    def test_damaged_small_files(
        self, run: Run, model: Path, tmp_path: Path, name: str, text: str
    ) -> None:
        """A sentence with the key, and no error of Python."""
        (model / name).write_text(text)
        status, said = run(*fit_stage("sft", model, tmp_path))
        if status == 2:
            assert "model.path is" in said or "the tokenizer of" in said, said
        else:
            # Two of the texts say nothing that a tokenizer needs to know.
            assert (name, STARTED in said) == ("tokenizer_config.json", True), said

    @pytest.mark.parametrize("stage", ["sft", "reward_model", "rl"])
    def test_chat_template(self, run: Run, model: Path, tmp_path: Path, stage: str) -> None:
        (model / "chat_template.jinja").write_text("{% include 'x' %}")
        path = rows(tmp_path / "prompts.jsonl", {"prompt": "1+1?", "answer": "2"})
        rl = ("recipe=demo", f"model.path={model}", f"data.path={path}")
        status, said = run(*(rl if stage == "rl" else fit_stage(stage, model, tmp_path)))
        assert status == 2, said
        assert f"the chat template of {model} fails on a chat of two messages" in said

    def test_random_weights_need_no_file(self, run: Run, model: Path, tmp_path: Path) -> None:
        (model / "model.safetensors").unlink()
        status, said = run(*fit_stage("pretrain", model, tmp_path, "model.random_weights=true"))
        assert (status, STARTED in said) == (1, True), said


class TestSaving:
    def test_settings_of_llama_2_chat_are_mended(
        self, run: Run, model: Path, tmp_path: Path
    ) -> None:
        settings = {"eos_token_id": 1, "pad_token_id": 0, "temperature": 0.6, "top_p": 0.9}
        (model / "generation_config.json").write_text(json.dumps(settings))
        status, said = run(*fit_stage("sft", model, tmp_path))
        assert (status, STARTED in said) == (1, True), said
        assert "temperature=0.6, top_p=0.9 without do_sample: do_sample is set to true" in said

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"output_scores": true}', "could not be saved, because of its configuration"),
            ('{"max_new_tokens": -3}', "cannot load its generation_config.json"),
            ("[", "generation_config.json"),
        ],
    )
    def test_what_cannot_be_mended_is_refused(
        self, run: Run, model: Path, tmp_path: Path, text: str, message: str
    ) -> None:
        (model / "generation_config.json").write_text(text)
        for settings in (
            fit_stage("sft", model, tmp_path),
            ("recipe=demo", f"model.path={model}"),
        ):
            status, said = run(*settings)
            assert status == 2, said
            assert message in said


def test_the_tiny_model_is_whole(model: Path) -> None:
    """The damages above are the only ones."""
    weights = load_file(model / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
