"""Tiny models and their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.models.tiny import arithmetic as tiny_arithmetic
from rlhf_ray.models.tiny.llama import TinySizes, new_tiny_llama
from rlhf_ray.models.tiny.tokenizer import SPECIALS, train_tokenizer
from rlhf_ray.models.tiny.warmup import (
    IGNORED,
    EncodedRows,
    Phase,
    WarmupRow,
    WarmupSettings,
    batch_loss,
    warm_up,
)
from rlhf_ray.testing.tiny import tiny_random, tiny_without_round_trip

TEXTS = ("What is 12+34?", "The answer is the answer.")


class TestTokenizer:
    def test_digits_stay_apart(self) -> None:
        tokenizer = train_tokenizer(["12 12 12 345"] * 50, vocab_size=400)
        assert tokenizer.convert_ids_to_tokens(tokenizer("12+345")["input_ids"]) == list("12+345")

    def test_words_are_merged(self) -> None:
        tokenizer = train_tokenizer(TEXTS, vocab_size=400)
        assert len(tokenizer("What is the answer")["input_ids"]) == 4
        assert 260 < len(tokenizer) <= 400

    def test_same_texts_same_tokenizer(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            train_tokenizer(TEXTS, vocab_size=300).save_pretrained(tmp_path / name)
        files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b")]
        assert files[0] == files[1]

    @pytest.mark.parametrize("text", ["What is 3+4?", "Zürich, 北京\t\n", " two  spaces "])
    def test_any_text_comes_back(self, text: str) -> None:
        tokenizer = train_tokenizer(TEXTS, vocab_size=300)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_specials_are_single_tokens_and_hidden_on_request(self) -> None:
        tokenizer = train_tokenizer(TEXTS, vocab_size=300)
        ids = tokenizer("".join(SPECIALS))["input_ids"]
        assert ids == [0, 1, 2, 3]
        assert tokenizer.decode([*ids, *tokenizer("7")["input_ids"]], skip_special_tokens=True) == (
            "7"
        )


class TestRandomModel:
    @pytest.mark.parametrize("tied", [True, False])
    def test_loads(self, tmp_path: Path, tied: bool) -> None:
        tiny_random(tmp_path, seed=1, tied=tied)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        head, embedding = model.lm_head.weight, model.get_input_embeddings().weight
        assert torch.equal(head, embedding) is tied
        assert embedding.shape[0] == len(tokenizer) == 320
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id

    def test_seed_decides_and_the_callers_random_state_stays(self, tmp_path: Path) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            tiny_random(tmp_path / name, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert not torch.equal(a["model.embed_tokens.weight"], c["model.embed_tokens.weight"])

    def test_tokenizer_without_round_trip(self, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_without_round_trip(tmp_path))
        assert tokenizer.decode(tokenizer("The ABC")["input_ids"]) == "the abc"
        sampled = [tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
        text = tokenizer.decode(sampled)
        assert text == "AB"
        assert tokenizer(text)["input_ids"] != sampled


class TestWarmUp:
    ROWS = (
        WarmupRow(question="What is 1+1?", answer="2", weight=3.0),
        WarmupRow(question="What is 5+5?", answer="I do not know.", weight=1.0),
        WarmupRow(question="What is 5+5?", answer="10", weight=1.0),
    )

    @pytest.fixture
    def parts(self):
        texts = [text for row in self.ROWS for text in (row.question, row.answer)]
        tokenizer = train_tokenizer(texts)
        return new_tiny_llama(tokenizer, seed=0, sizes=TinySizes()), tokenizer

    def test_loss_and_gradient_are_those_of_whole_rows(self, parts) -> None:
        """Against the model's plain forward pass over prompt and answer, row by row."""
        model, tokenizer = parts
        rows = EncodedRows(self.ROWS, tokenizer)
        tokens, labels = rows.draw(6, torch.Generator().manual_seed(0))
        assert len({int((row != IGNORED).sum()) for row in labels}) > 1
        batch_loss(model, rows.prefix, tokens, labels).backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        losses = []
        for row, targets in zip(tokens, labels, strict=True):
            answer = torch.nonzero(targets != IGNORED)[:, 0]
            whole = torch.cat([rows.prefix, row[: answer[-1] + 1]])
            logits = model(whole[None]).logits[0]
            predicting = answer + len(rows.prefix) - 1
            losses.append(F.cross_entropy(logits[predicting], targets[answer], reduction="none"))
        torch.cat(losses).mean().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)

    def test_labels_are_answer_and_end(self, parts) -> None:
        _, tokenizer = parts
        rows = EncodedRows(self.ROWS[:1], tokenizer)
        tokens, labels = rows.draw(1, torch.Generator())
        whole = torch.cat([rows.prefix, tokens[0]])
        assert tokenizer.decode(whole) == "<user>What is 1+1?<assistant>2<eos>"
        assert tokenizer.decode(labels[0][labels[0] != IGNORED]) == "2<eos>"

    def test_rows_are_drawn_by_weight(self, parts) -> None:
        _, tokenizer = parts
        rows = EncodedRows(self.ROWS, tokenizer)
        _, labels = rows.draw(5000, torch.Generator().manual_seed(0))
        two = tokenizer.convert_tokens_to_ids("2")
        assert abs(float((labels == two).any(1).float().mean()) - 0.6) < 0.03

    def test_learns_and_repeats(self, parts) -> None:
        _, tokenizer = parts
        phase = Phase(rows=self.ROWS[:1], num_steps=15, learning_rate=lambda step: 3e-3)
        settings = WarmupSettings(batch_size=4, num_threads=1)
        threads = torch.get_num_threads()
        results = []
        for _ in range(2):
            model = new_tiny_llama(tokenizer, seed=0, sizes=TinySizes())
            reports: list[str] = []
            warm_up(model, tokenizer, [phase], settings, seed=0, report=reports.append)
            prompt = tokenizer("<user>What is 1+1?<assistant>", return_tensors="pt")
            results.append(model(**prompt).logits[0, -1])
            assert reports[-1].startswith("warm-up step 15 of 15, loss 0.")
        assert torch.equal(results[0], results[1])
        assert int(results[0].argmax()) == tokenizer.convert_tokens_to_ids("2")
        assert torch.get_num_threads() == threads

    def test_divergence_is_an_error(self, parts) -> None:
        model, tokenizer = parts
        phase = Phase(rows=self.ROWS, num_steps=3, learning_rate=lambda step: float("nan"))
        settings = WarmupSettings(batch_size=4, num_threads=1)
        with pytest.raises(RuntimeError, match="the warm-up diverged: loss nan"):
            warm_up(model, tokenizer, [phase], settings, seed=0, report=lambda line: None)


def test_rows_of_the_arithmetic_recipe() -> None:
    rows = tiny_arithmetic.rows(share_right=0.8)
    of_one_sum = {row.answer: row.weight for row in rows if row.question == "What is 7+8?"}
    assert of_one_sum == pytest.approx(
        {"15": 0.8, "About 20.": 0.09, "I do not know.": 0.09, "16": 0.01, "14": 0.01}
    )
    assert {row.answer for row in rows if row.question == "What is 0+0?"} == {
        "0",
        "About 0.",
        "I do not know.",
        "1",
    }
    assert sum(row.weight for row in rows) == pytest.approx(100)
