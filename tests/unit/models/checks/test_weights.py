"""Weight files that a worker could not load are refused by their headers, in our own words."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.whole_model import Use, check_weights
from rlhf_ray.testing.tiny import tiny_random, tiny_reward_model

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def check(folder: Path, use: Use = Use.POLICY) -> None:
    check_weights(ModelConfig(path=str(folder)), use)


@pytest.fixture
def sharded(copy: Path) -> Path:
    """The model in several files with an index."""
    model = AutoModelForCausalLM.from_pretrained(copy)
    (copy / WEIGHTS).unlink()
    model.save_pretrained(copy, max_shard_size="100KB")
    assert (copy / INDEX).is_file()
    return copy


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


class TestWhole:
    @pytest.mark.parametrize("use", [Use.POLICY, Use.SCORES, Use.ENGINE])
    @pytest.mark.parametrize("tied", [True, False])
    def test_a_model(self, tmp_path: Path, use: Use, tied: bool) -> None:
        check(tiny_random(tmp_path, tied=tied), use)

    def test_several_files(self, sharded: Path) -> None:
        check(sharded)

    def test_reward_model(self, tmp_path: Path) -> None:
        check(tiny_reward_model(tmp_path), Use.SCORES)

    def test_backbone_under_its_bare_names(self, copy: Path) -> None:
        """A folder of `AutoModel.save_pretrained` lacks the prefix."""
        change(copy, lambda w: [w.update({n.removeprefix("model."): w.pop(n)}) for n in list(w)])
        check(copy, Use.SCORES)

    def test_experts_that_are_joined_when_they_are_loaded(self, tmp_path: Path) -> None:
        config = MixtralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
        )
        MixtralForCausalLM(config).save_pretrained(tmp_path)
        check(tmp_path)

    def test_pickle_of_weights_alone(self, copy: Path) -> None:
        torch.save(load_file(copy / WEIGHTS), copy / PICKLE)
        (copy / WEIGHTS).unlink()
        check(copy)

    def test_old_pickle_has_no_header(self, copy: Path) -> None:
        weights = load_file(copy / WEIGHTS)
        torch.save(weights, copy / PICKLE, _use_new_zipfile_serialization=False)
        (copy / WEIGHTS).unlink()
        check(copy)

    def test_hub_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The files of a hub name come when it is loaded: only its configuration is asked for."""
        asked: list[str] = []
        monkeypatch.setattr(
            AutoConfig, "from_pretrained", lambda path, **_: asked.append(path) or LlamaConfig()
        )
        check(Path("owner/name"))
        assert asked == ["owner/name"]

    def test_quantised_weights_have_shapes_of_their_own(self, copy: Path, edit) -> None:
        change(copy, lambda w: w.update({"model.norm.weight_packed": w.pop("model.norm.weight")}))
        edit(copy / "config.json", quantization_config={"quant_method": "compressed-tensors"})
        check(copy, Use.ENGINE)

    def test_engine_takes_files_of_any_name(self, copy: Path) -> None:
        (copy / WEIGHTS).rename(copy / "consolidated.safetensors")
        check(copy, Use.ENGINE)
        with pytest.raises(RequestError, match="a folder without weights"):
            check(copy)

    def test_a_large_model_takes_no_time(self, tmp_path: Path) -> None:
        """The names and shapes of 72B parameters; the file is sparse."""
        config = LlamaConfig(
            vocab_size=152064,
            hidden_size=8192,
            intermediate_size=29568,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
        )
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(tmp_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        header, end = {}, 0
        for name, tensor in model.state_dict().items():
            start, end = end, end + 2 * tensor.numel()
            shape = list(tensor.shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with (tmp_path / WEIGHTS).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        started = time.monotonic()
        check(tmp_path)
        assert time.monotonic() - started < 30


class TestDamage:
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_cut_off(self, copy: Path, share: float) -> None:
        content = (copy / WEIGHTS).read_bytes()
        (copy / WEIGHTS).write_bytes(content[: int(share * len(content))])
        with pytest.raises(RequestError, match=r"model\.safetensors .* is damaged or incomplete"):
            check(copy)
        with pytest.raises(RequestError, match="is damaged or incomplete"):
            check(copy, Use.ENGINE)

    def test_no_weights(self, copy: Path) -> None:
        (copy / WEIGHTS).unlink()
        for use in Use:
            with pytest.raises(RequestError, match="a folder without weights: none of"):
                check(copy, use)

    def test_missing_file(self, sharded: Path) -> None:
        lost = sorted(sharded.glob("model-*.safetensors"))[1]
        lost.unlink()
        with pytest.raises(RequestError, match=f"1 of its .* files are missing: {lost.name}"):
            check(sharded)

    def test_index_of_another_model(self, sharded: Path) -> None:
        index = json.loads((sharded / INDEX).read_text())
        first = sorted(set(index["weight_map"].values()))[0]
        index["weight_map"]["model.layers.9.norm.weight"] = first
        (sharded / INDEX).write_text(json.dumps(index))
        with pytest.raises(RequestError, match=r"do not have: model\.layers\.9\.norm\.weight"):
            check(sharded)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[", "cannot be read"),
            ("[]", "has no weight_map"),
            ('{"weight_map": {}}', "has no weight_map"),
            ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ],
    )
    def test_broken_index(self, sharded: Path, text: str, message: str) -> None:
        (sharded / INDEX).write_text(text)
        with pytest.raises(RequestError, match=message):
            check(sharded)

    @pytest.mark.parametrize("place", ["../other.safetensors", "/etc/x.safetensors", "a/../../b"])
    def test_index_that_leaves_the_folder(self, sharded: Path, place: str) -> None:
        shutil.copy(sorted(sharded.glob("*.safetensors"))[0], sharded.parent / "other.safetensors")
        index = json.loads((sharded / INDEX).read_text())
        index["weight_map"] |= {"model.norm.weight": place}
        (sharded / INDEX).write_text(json.dumps(index))
        for use in Use:
            with pytest.raises(RequestError, match=r"outside of the folder, which is never read"):
                check(sharded, use)

    def test_link_out_of_the_folder_is_how_the_hubs_cache_looks(self, copy: Path) -> None:
        (copy / WEIGHTS).rename(copy.parent / "blob")
        (copy / WEIGHTS).symlink_to("../blob")
        check(copy)


class TestPickle:
    """Code in a pickle is not run, and torch's advice to run it is not passed on."""

    def test_code(self, copy: Path) -> None:
        (copy / WEIGHTS).unlink()
        torch.save({"x": _Code(copy / "ran")}, copy / PICKLE)
        with pytest.raises(RequestError, match="holds more than weights") as caught:
            check(copy)
        assert "weights_only" not in str(caught.value)
        assert not (copy / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"junk" * 100, b"PK\x03\x04" + b"x" * 100])
    def test_junk(self, copy: Path, content: bytes) -> None:
        (copy / WEIGHTS).unlink()
        (copy / PICKLE).write_bytes(content)
        with pytest.raises(RequestError, match=r"pytorch_model\.bin .*is damaged"):
            check(copy)

    def test_other_things(self, copy: Path) -> None:
        (copy / WEIGHTS).unlink()
        torch.save({"step": 3}, copy / PICKLE)
        with pytest.raises(RequestError, match="other things than weights by name"):
            check(copy)


class _Code:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self._mark}",)


class TestShapes:
    def test_other_widths(self, copy: Path, edit) -> None:
        edit(copy / "config.json", intermediate_size=256)
        message = (
            r"mlp\.down_proj\.weight is \[64, 128\] in the files and \[64, 256\] by config\.json; "
        )
        for use in Use:
            with pytest.raises(RequestError, match=message):
                check(copy, use)

    def test_more_layers(self, copy: Path, edit) -> None:
        edit(copy / "config.json", num_hidden_layers=3)
        with pytest.raises(RequestError, match=r"model\.layers\.2\..* are missing and would be"):
            check(copy)

    def test_missing_weight(self, copy: Path) -> None:
        change(copy, lambda weights: weights.pop("model.norm.weight"))
        with pytest.raises(RequestError, match=r"model\.norm\.weight are missing and would"):
            check(copy)

    def test_head_of_an_untied_model(self, tmp_path: Path) -> None:
        tiny_random(tmp_path, tied=False)
        change(tmp_path, lambda weights: weights.pop("lm_head.weight"))
        with pytest.raises(RequestError, match=r"lm_head\.weight are missing"):
            check(tmp_path)
        check(tmp_path, Use.SCORES)

    def test_classifier_is_no_policy(self, tmp_path: Path) -> None:
        config = LlamaConfig.from_pretrained(tiny_random(tmp_path / "one"), num_labels=1)
        config.tie_word_embeddings = False
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        with pytest.raises(RequestError, match=r"lm_head\.weight are missing"):
            check(tmp_path)
        change(tmp_path, lambda weights: weights.pop("score.weight"))
        with pytest.raises(RequestError, match=r"score\.weight are missing"):
            check(tmp_path, Use.SCORES)


class TestLeftOut:
    def test_fewer_layers_than_the_files(self, copy: Path, edit) -> None:
        edit(copy / "config.json", num_hidden_layers=1)
        for use in Use:
            with pytest.raises(RequestError, match=r"fewer layers than the files.*layers\.1\."):
                check(copy, use)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.complex64])
    def test_no_numbers_of_weights(self, copy: Path, dtype: torch.dtype) -> None:
        name = "model.layers.0.self_attn.q_proj.weight"
        change(copy, lambda weights: weights.update({name: weights[name].to(dtype)}))
        with pytest.raises(RequestError, match=f"weights as {str(dtype).removeprefix('torch.')};"):
            check(copy)


class TestOneSet:
    """A folder whose weights depend on who reads it is refused."""

    def test_one_file_and_several(self, sharded: Path) -> None:
        AutoModelForCausalLM.from_pretrained(sharded).save_pretrained(sharded.parent / "whole")
        shutil.copy(sharded.parent / "whole" / WEIGHTS, sharded / WEIGHTS)
        for use in Use:
            with pytest.raises(RequestError, match=f"two sets of weights: {WEIGHTS}, and the"):
                check(sharded, use)

    def test_an_index_of_the_one_file(self, copy: Path) -> None:
        names = dict.fromkeys(load_file(copy / WEIGHTS), WEIGHTS)
        (copy / INDEX).write_text(json.dumps({"weight_map": names}))
        check(copy, Use.ENGINE)

    def test_another_file_with_the_same_weights(self, copy: Path) -> None:
        shutil.copy(copy / WEIGHTS, copy / "old.safetensors")
        check(copy)
        with pytest.raises(RequestError, match=r"old\.safetensors holds weights of the same names"):
            check(copy, Use.ENGINE)
        save_file({"other": torch.ones(1)}, copy / "old.safetensors")
        check(copy, Use.ENGINE)

    def test_a_pickle_next_to_a_file_that_the_engine_reads(self, copy: Path) -> None:
        torch.save(load_file(copy / WEIGHTS), copy / PICKLE)
        check(copy, Use.ENGINE)  # Both read the safetensors file.
        (copy / WEIGHTS).rename(copy / "other.safetensors")
        check(copy)
        with pytest.raises(RequestError, match=r"here other\.safetensors, and transformers the"):
            check(copy, Use.ENGINE)

    def test_files_in_a_sub_folder(self, sharded: Path) -> None:
        index = json.loads((sharded / INDEX).read_text())
        (sharded / "more").mkdir()
        for file in sharded.glob("model-*.safetensors"):
            file.rename(sharded / "more" / file.name)
        index["weight_map"] = {name: f"more/{f}" for name, f in index["weight_map"].items()}
        (sharded / INDEX).write_text(json.dumps(index))
        check(sharded)
        with pytest.raises(RequestError, match="vLLM reads no file in a sub-folder"):
            check(sharded, Use.ENGINE)


class TestTied:
    @pytest.mark.parametrize("kind", ["safetensors", "shards", "pickle"])
    def test_two_matrices_where_there_is_one(self, copy: Path, kind: str) -> None:
        weights = load_file(copy / WEIGHTS)
        shared = weights["model.embed_tokens.weight"]

        def write(head: Tensor) -> None:
            if kind == "pickle":
                (copy / WEIGHTS).unlink(missing_ok=True)
                torch.save({**weights, "lm_head.weight": head}, copy / PICKLE)
            elif kind == "shards":
                (copy / WEIGHTS).unlink(missing_ok=True)
                save_file(weights, copy / "a.safetensors")
                save_file({"lm_head.weight": head}, copy / "b.safetensors")
                places = {
                    **dict.fromkeys(weights, "a.safetensors"),
                    "lm_head.weight": "b.safetensors",
                }
                (copy / INDEX).write_text(json.dumps({"weight_map": places}))
            else:
                save_file({**weights, "lm_head.weight": head}, copy / WEIGHTS)

        write(shared.clone())
        for use in Use:
            check(copy, use)
        other = shared.clone()
        other[-1, -1] += 1
        write(other)
        check(copy, Use.SCORES)
        for use in (Use.POLICY, Use.ENGINE):
            with pytest.raises(RequestError, match=r"tie_word_embeddings=true, and its files have"):
                check(copy, use)
