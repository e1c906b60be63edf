"""Weights in several files: which tensor goes where, and models that read them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlhf_ray.models.saving import weight_files
from rlhf_ray.models.saving.weight_files import INDEX_FILE, plan_files, write_files, write_index
from rlhf_ray.models.saving.write import check_saved, write_around

LIMIT = 6000
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


class Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def llama(*, tied: bool) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def mixture() -> Any:
    torch.manual_seed(0)
    sizes = SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, decoder_sparse_step=1, head_dim=8))


def named_of(model: Any) -> dict[str, Tensor]:
    """Each tensor once, as ranks give them."""
    seen: set[int] = set()
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) not in seen and not seen.add(id(tensor))
    }


def specs_of(model: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in named_of(model).items()
    ]


def written(model: Any, folder: Path, *, world_size: int) -> list[list[str]]:
    """Write a model as several ranks do; the names of the files of each."""
    plan = plan_files(model, specs_of(model), max_file_bytes=LIMIT)
    assert plan is not None
    files = []
    for rank in range(world_size):
        before = {path.name for path in folder.iterdir()}
        named = iter(named_of(model).items())
        write_files(named, plan, model, folder, rank=rank, world_size=world_size)
        files.append(sorted({path.name for path in folder.iterdir()} - before))
    write_index(plan, folder)
    write_around(model, Tokenizer(), folder)
    return files


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("make", [lambda: llama(tied=True), lambda: llama(tied=False), mixture])
def test_transformers_reads_what_the_ranks_write(tmp_path, make, world_size):
    model = make().to(torch.bfloat16)
    files = written(model, tmp_path, world_size=world_size)
    check_saved(tmp_path)
    assert all(files), "every rank has written"
    assert max(map(len, files)) - min(map(len, files)) <= 1
    names = sorted(name for own in files for name in own)
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded) is type(model)
    found, expected = loaded.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == torch.bfloat16


def test_a_folder_has_the_same_files_as_one_of_transformers(tmp_path):
    model, mine, theirs = mixture(), tmp_path / "mine", tmp_path / "theirs"
    mine.mkdir()
    written(model, mine, world_size=2)
    model.save_pretrained(theirs, max_shard_size=LIMIT)
    index = {side: json.loads((side / INDEX_FILE).read_text()) for side in (mine, theirs)}
    assert index[mine]["weight_map"].keys() == index[theirs]["weight_map"].keys()
    assert index[mine]["metadata"]["total_size"] == index[theirs]["metadata"]["total_size"]
    config = {side: json.loads((side / "config.json").read_text()) for side in (mine, theirs)}
    assert config[mine] == config[theirs]
    assert (mine / "generation_config.json").is_file()
    assert (mine / "tokenizer.json").is_file()


def test_files_are_not_longer_than_the_limit(tmp_path):
    model = llama(tied=False)
    plan = plan_files(model, specs_of(model), max_file_bytes=LIMIT)
    assert plan is not None
    assert [name for names in plan.files for name in names] == list(named_of(model))
    assert plan.num_bytes == sum(4 * tensor.numel() for tensor in named_of(model).values())
    for names in plan.files:
        assert sum(4 * named_of(model)[name].numel() for name in names) <= LIMIT


def test_a_small_model_is_one_file():
    model = llama(tied=True)
    assert plan_files(model, specs_of(model), max_file_bytes=10**9) is None


def test_a_model_whose_tensors_are_joined_is_written_whole(monkeypatch):
    """The hub's format may have one tensor where the model has two."""

    def joined(_: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        gates = [name for name in tensors if "gate_proj" in name]
        others = {name: value for name, value in tensors.items() if name not in gates}
        return (
            {**others, "joined": torch.cat([tensors[name] for name in gates])} if gates else others
        )

    monkeypatch.setattr(weight_files, "revert_weight_conversion", joined)
    model = llama(tied=True)
    assert plan_files(model, specs_of(model), max_file_bytes=LIMIT) is None


def test_a_failure_is_raised_when_all_has_been_read(tmp_path, monkeypatch):
    """Other ranks gather with this one, and would wait for ever."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_files, "save_file", full)
    model, seen = llama(tied=True), []
    plan = plan_files(model, specs_of(model), max_file_bytes=LIMIT)
    assert plan is not None

    def named() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named_of(model).items():
            seen.append(name)
            yield name, tensor

    with pytest.raises(OSError, match="No space left"):
        write_files(named(), plan, model, tmp_path, rank=0, world_size=1)
    assert seen == list(named_of(model))


def test_a_rank_holds_its_own_files_alone(tmp_path):
    """At most two at a time: one that fills and one that is written."""
    model = llama(tied=False)
    plan = plan_files(model, specs_of(model), max_file_bytes=LIMIT)
    assert plan is not None
    copied: list[str] = []

    class Watched:
        def __init__(self, name: str, tensor: Tensor) -> None:
            self._name, self._tensor = name, tensor

        def detach(self) -> Tensor:
            copied.append(self._name)
            return self._tensor.detach()

    named: Any = ((name, Watched(name, tensor)) for name, tensor in named_of(model).items())
    write_files(named, plan, model, tmp_path, rank=1, world_size=4)
    assert copied == [name for names in plan.files[1::4] for name in names]
