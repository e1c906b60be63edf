"""Loading of tokenizers, policies and scalar heads, and what is said when it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.loading import (
    load_policy,
    load_scalar_head,
    load_tokenizer,
)
from rlhf_ray.models.unloaded.random_weights import new_policy
from rlhf_ray.testing.tiny import tiny_random

TOKENS = torch.tensor([[5, 9, 11, 40], [7, 3, 2, 2]])


def model_at(path: Path | str, **settings) -> ModelConfig:
    return ModelConfig(path=str(path), **settings)


def set_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class TestPolicy:
    @pytest.mark.parametrize("tied", [True, False])
    def test_weights_are_those_of_the_folder(self, tmp_path: Path, tied: bool) -> None:
        tiny_random(tmp_path, tied=tied, seed=4)
        policy = load_policy(model_at(tmp_path), dtype="float32")
        saved = load_file(tmp_path / "model.safetensors")
        assert ("lm_head.weight" in saved) is not tied
        for name, tensor in saved.items():
            assert torch.equal(policy.state_dict()[name], tensor), name

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_dtype_and_attention(self, tiny: Path, dtype: str) -> None:
        policy = load_policy(model_at(tiny, attention="eager"), dtype=dtype)
        assert {p.dtype for p in policy.parameters()} == {getattr(torch, dtype)}
        assert policy.config._attn_implementation == "eager"

    def test_missing_weights_are_not_made_up(self, copy: Path) -> None:
        set_weights(copy, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
        with pytest.raises(RequestError, match=r"layers.1.mlp.up_proj.weight are missing and woul"):
            load_policy(model_at(copy), dtype="float32")

    def test_head_of_an_untied_model_is_not_made_up(self, tmp_path: Path) -> None:
        tiny_random(tmp_path, tied=False)
        set_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
        with pytest.raises(RequestError, match=r"lm_head.weight are missing"):
            load_policy(model_at(tmp_path), dtype="float32")
        assert load_scalar_head(model_at(tmp_path), dtype="float32")

    def test_unknown_dtype(self, tiny: Path) -> None:
        with pytest.raises(RequestError, match="dtype is 'float8'; it must be one of float32"):
            load_policy(model_at(tiny), dtype="float8")

    def test_attention_that_is_not_installed(self, tiny: Path) -> None:
        with pytest.raises(RequestError, match="cannot load a causal language model"):
            load_policy(model_at(tiny, attention="flash_attention_2"), dtype="bfloat16")

    def test_damaged_weights(self, copy: Path) -> None:
        content = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(RequestError, match="cannot load a causal language model"):
            load_policy(model_at(copy), dtype="float32")

    def test_unknown_architecture(self, copy: Path, edit) -> None:
        edit(copy / "config.json", model_type="martian", architectures=["Martian"])
        with pytest.raises(RequestError, match="martian"):
            load_policy(model_at(copy), dtype="float32")


class TestPath:
    @pytest.mark.parametrize("load", [load_policy, load_scalar_head])
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("", "model.path is not set"),
            ("/no/such/folder", "'/no/such/folder': no such folder, and not a hub name"),
            ("a/b/c", "no such folder, and not a hub name"),
            ("builtin:arithmetic", "has to be made before it is loaded"),
        ],
    )
    def test_nothing_there(self, load, path: str, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            load(model_at(path), dtype="float32")
        with pytest.raises(RequestError, match=message):
            load_tokenizer(model_at(path))

    def test_file(self, tiny: Path) -> None:
        with pytest.raises(RequestError, match="a file; a model is the folder around it"):
            load_policy(model_at(tiny / "model.safetensors"), dtype="float32")

    def test_folder_around_the_model(self, copy: Path, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=f"without config.json; did you mean {copy}"):
            load_policy(model_at(tmp_path), dtype="float32")
        (copy / "config.json").unlink()
        with pytest.raises(RequestError, match=r"without config.json; it holds \['copy'\]"):
            load_policy(model_at(tmp_path), dtype="float32")

    def test_adapter(self, copy: Path) -> None:
        (copy / "config.json").rename(copy / "adapter_config.json")
        with pytest.raises(RequestError, match="an adapter without its base model"):
            load_policy(model_at(copy), dtype="float32")

    def test_hub_names_are_passed_on(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a hub, the library's offline error shows that the name reached it."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for name in ("nobody/no-such-model", "no-such-model"):
            with pytest.raises(RequestError, match=rf"'{name}' \(no such folder here, so taken"):
                load_policy(model_at(name), dtype="float32")
            with pytest.raises(RequestError, match=rf"tokenizer_path is '{name}'"):
                load_tokenizer(model_at(tiny, tokenizer_path=name))


class TestTokenizer:
    def test_as_it_is(self, tiny: Path) -> None:
        tokenizer = load_tokenizer(model_at(tiny))
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
        assert "<assistant>" in str(tokenizer.chat_template)

    def test_end_of_text_pads_where_nothing_else_does(self, copy: Path, edit) -> None:
        edit(copy / "tokenizer_config.json", pad_token=None)
        tokenizer = load_tokenizer(model_at(copy))
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1

    def test_without_end_of_text(self, copy: Path, edit) -> None:
        edit(copy / "tokenizer_config.json", eos_token=None)
        with pytest.raises(RequestError, match="has no end-of-text token"):
            load_tokenizer(model_at(copy))

    def test_own_folder(self, copy: Path, tiny: Path, edit) -> None:
        edit(copy / "tokenizer_config.json", eos_token="<pad>")
        (copy / "config.json").unlink()
        tokenizer = load_tokenizer(model_at(tiny, tokenizer_path=str(copy)))
        assert tokenizer.eos_token == "<pad>"

    def test_chat_template_from_a_file(self, tiny: Path, tmp_path: Path) -> None:
        file = tmp_path / "template.jinja"
        file.write_text("{{ messages[0]['content'] }}!")
        tokenizer = load_tokenizer(model_at(tiny, chat_template=str(file)))
        chat = [{"role": "user", "content": "hi"}]
        assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi!"

    def test_one_of_several_chat_templates_by_its_name(
        self, copy: Path, tiny: Path, tmp_path: Path
    ) -> None:
        tokenizer = load_tokenizer(model_at(tiny))
        tokenizer.chat_template = {"rag": "a", "tool_use": "b"}
        (copy / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(copy)
        assert load_tokenizer(model_at(copy, chat_template="tool_use")).chat_template == "b"
        with pytest.raises(RequestError, match=r"own templates are '(rag|tool_use)', '"):
            load_tokenizer(model_at(copy, chat_template="tools"))
        file = tmp_path / "template.jinja"
        file.write_text("c")
        assert load_tokenizer(model_at(copy, chat_template=str(file))).chat_template == "c"

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "cannot be read"), (b" \n", "the file is empty"), (b"\xff", "cannot be read")],
    )
    def test_broken_chat_template(
        self, tiny: Path, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        file = tmp_path / "template.jinja"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            load_tokenizer(model_at(tiny, chat_template=str(file)))

    def test_more_tokens_than_embeddings(self, tiny: Path, tmp_path: Path) -> None:
        tiny_random(tmp_path, vocab_size=280)
        settings = model_at(tmp_path, tokenizer_path=str(tiny))
        with pytest.raises(RequestError, match=r"ids up to 319 .* but the model has 280 embedding"):
            load_tokenizer(settings)
        assert load_tokenizer(model_at(tiny, tokenizer_path=str(tmp_path)))

    def test_folder_without_tokenizer(self, copy: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (copy / name).unlink()
        with pytest.raises(RequestError, match="tokenizer"):
            load_tokenizer(model_at(copy))


class TestScalarHead:
    def test_fresh_head_on_the_models_backbone(self, tiny: Path) -> None:
        model = load_scalar_head(model_at(tiny), dtype="float32")
        whole = AutoModelForCausalLM.from_pretrained(tiny)
        hidden = model.backbone(TOKENS, use_cache=False).last_hidden_state
        assert torch.equal(hidden, whole.model(TOKENS, use_cache=False).last_hidden_state)
        assert model.head.weight.shape == (1, 64)
        assert torch.equal(model(TOKENS), torch.zeros(2, 4))

    def test_fresh_head_learns_and_then_the_backbone_does(self, tiny: Path) -> None:
        model = load_scalar_head(model_at(tiny), dtype="float32")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        losses = []
        for _ in range(4):
            loss = (model(TOKENS) - 1).square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses == sorted(losses, reverse=True)
        changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
        assert "head.weight" in changed
        assert "backbone.layers.0.self_attn.q_proj.weight" in changed

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_dtype(self, tiny: Path, dtype: str) -> None:
        model = load_scalar_head(model_at(tiny), dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}

    def test_reward_model_keeps_its_head(self, tmp_path: Path, tiny: Path) -> None:
        config = LlamaConfig.from_pretrained(tiny, num_labels=1, pad_token_id=0)
        torch.manual_seed(0)
        classifier = LlamaForSequenceClassification(config).eval()
        classifier.save_pretrained(tmp_path)
        model = load_scalar_head(model_at(tmp_path), dtype="float32").eval()
        assert torch.equal(model.head.weight, classifier.score.weight)
        assert model.head.weight.abs().max() > 0
        # The library scores a text by its last token that is not padding.
        tokens = torch.tensor([[5, 9, 11, 40]])
        torch.testing.assert_close(model(tokens)[:, -1:], classifier(tokens).logits)

    def test_classifier_with_more_labels(self, tmp_path: Path, tiny: Path) -> None:
        config = LlamaConfig.from_pretrained(tiny, num_labels=3)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        with pytest.raises(RequestError, match="a classifier with 3 labels; a scalar head has 1"):
            load_scalar_head(model_at(tmp_path), dtype="float32")

    def test_classifier_without_its_head(self, tmp_path: Path, tiny: Path) -> None:
        config = LlamaConfig.from_pretrained(tiny, num_labels=1)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        set_weights(tmp_path, lambda weights: weights.pop("score.weight"))
        with pytest.raises(RequestError, match=r"score.weight are missing"):
            load_scalar_head(model_at(tmp_path), dtype="float32")

    def test_other_heads_are_replaced(self, tmp_path: Path, tiny: Path) -> None:
        config = LlamaConfig.from_pretrained(tiny, num_labels=2)
        LlamaForTokenClassification(config).save_pretrained(tmp_path)
        model = load_scalar_head(model_at(tmp_path), dtype="float32")
        assert torch.equal(model.head.weight, torch.zeros(1, 64))


def test_random_weights_depend_on_the_seed_alone(tmp_path):
    """The folder needs no weights, because they are not read."""
    folder = tiny_random(tmp_path / "model")
    loaded = load_policy(model_at(folder), dtype="float32").state_dict()
    (folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    first = new_policy(model_at(folder), dtype="float32", seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(6)
    again = new_policy(model_at(folder), dtype="float32", seed=1).state_dict()
    other = new_policy(model_at(folder), dtype="float32", seed=2).state_dict()
    name = "model.embed_tokens.weight"
    assert first.keys() == loaded.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], loaded[name])
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn), "the generator of the process is left alone"


def test_random_weights_of_nothing(tmp_path):
    with pytest.raises(RequestError, match="no such folder"):
        new_policy(model_at(tmp_path / "nowhere"), dtype="float32", seed=0)
