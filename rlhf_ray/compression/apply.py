"""Program that compresses a model with LLM Compressor, in a separate Python environment.

    PYTHON -P apply.py REQUEST RESULT

LLM Compressor and vLLM need different versions of transformers. So this file imports nothing from
this package and exchanges JSON files with it (`compression.request`).
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

_GROUP_SIZES = (128, 64, 32)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")


def main() -> None:
    """Apply every method of the request to a fresh copy of the model."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = _load(request["model"])
    result: dict[str, Any] = {
        "original": {"perplexity": _perplexity(model, request["demonstrations"])},
        "methods": {},
    }
    del model
    for name in request["methods"]:
        started = time.monotonic()
        try:
            found = _compress(name, request)
        # A method may raise any kind of error for a model that it does not support; the error is
        # the result of this method, and the others go on.
        except Exception as error:  # noqa: BLE001
            found = {"error": f"{type(error).__name__}: {error}"}
        result["methods"][name] = found | {"seconds": round(time.monotonic() - started, 1)}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def _compress(name: str, request: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(request["seed"])
    model = _load(request["model"])
    ignored = _Ignored(request["ignore"])
    linears = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in ignored
    }
    if name.startswith("magnitude"):
        _prune_by_magnitude(linears, request["sparsity"], two_of_four=name.endswith("2_4"))
    else:
        _oneshot(model, _recipe(name, linears, request), request["calibration"])
    perplexity = _perplexity(model, request["demonstrations"])
    zeros = sum(int((m.weight == 0).sum()) for m in linears.values())
    share = zeros / sum(m.weight.numel() for m in linears.values())
    folder = Path(request["folder"]) / name
    # The file of the original is copied below. Settings that transformers reads and refuses to
    # save (a temperature without do_sample) would cost the whole form here.
    model.generation_config = type(model.generation_config)()
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_compressed=True)
    _copy_the_rest(Path(request["model"]), folder)
    return {"path": str(folder), "perplexity": perplexity, "zero_share": share}


def _load(path: str) -> Any:
    transformers = importlib.import_module("transformers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(device).eval()


class _Ignored:
    """Layer names in LLM Compressor's notation: full names, or `re:` and a regular expression."""

    def __init__(self, names: Sequence[str]) -> None:
        self._matches = importlib.import_module("compressed_tensors.utils.match").match_name
        self._names = names

    def __contains__(self, name: object) -> bool:
        return any(self._matches(name, ignored) for ignored in self._names)


def _recipe(name: str, linears: dict[str, nn.Linear], request: dict[str, Any]) -> list[Any]:
    quantization = importlib.import_module("llmcompressor.modifiers.quantization")
    ignore = request["ignore"]
    if name in ("int8", "int4"):
        size = _group_size(linears)
        weights = {
            "num_bits": int(name[3:]),
            "type": "int",
            "symmetric": True,
            "strategy": "group" if size else "channel",
            "group_size": size,
        }
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        modifier = (
            quantization.QuantizationModifier if name == "int8" else quantization.GPTQModifier
        )
        return [modifier(config_groups=groups, ignore=ignore)]
    if name == "int8_activations":
        smooth = importlib.import_module("llmcompressor.modifiers.transform.smoothquant")
        return [
            smooth.SmoothQuantModifier(smoothing_strength=request["smoothing"]),
            quantization.GPTQModifier(targets="Linear", scheme="W8A8", ignore=ignore),
        ]
    pruning = importlib.import_module("llmcompressor.modifiers.pruning")
    two_of_four = name == "wanda_2_4"
    return [
        pruning.WandaPruningModifier(
            sparsity=0.5 if two_of_four else request["sparsity"],
            mask_structure="2:4" if two_of_four else "0:0",
            ignore=ignore,
        )
    ]


def _group_size(linears: dict[str, nn.Linear]) -> int | None:
    """Largest group size that divides the rows of all weights; None if none does."""
    widths = [m.weight.shape[1] for m in linears.values()]
    return next((s for s in _GROUP_SIZES if all(w % s == 0 for w in widths)), None)


def _oneshot(model: Any, recipe: list[Any], rows: list[list[int]]) -> None:
    datasets = importlib.import_module("datasets")
    samples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    importlib.import_module("llmcompressor").oneshot(
        model=model,
        dataset=datasets.Dataset.from_list(samples),
        recipe=recipe,
        max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows),
    )


def _prune_by_magnitude(
    linears: dict[str, nn.Linear], sparsity: float, *, two_of_four: bool
) -> None:
    if not two_of_four:
        prune = importlib.import_module("torch.nn.utils.prune")
        for module in linears.values():
            prune.l1_unstructured(module, "weight", amount=sparsity)
            prune.remove(module, "weight")
        return
    pruning = importlib.import_module("torch.ao.pruning")
    sparsifier = pruning.WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
    )
    # The sparsifier takes one module with submodules; names of a `ModuleDict` may not have dots.
    holder = nn.ModuleDict({name.replace(".", "/"): module for name, module in linears.items()})
    sparsifier.prepare(holder, [{"tensor_fqn": f"{name}.weight"} for name in holder])
    sparsifier.step()
    sparsifier.squash_mask()


@torch.no_grad()
def _perplexity(model: Any, rows: list[dict[str, list[int]]]) -> float | None:
    """exp of the mean negative log-probability of the marked tokens; None without any."""
    total, count = 0.0, 0
    for row in rows:
        token_ids = torch.tensor([row["token_ids"]], device=model.device)
        mask = torch.tensor(row["mask"][1:], device=model.device, dtype=torch.bool)
        logprobs = model(input_ids=token_ids).logits[0, :-1].float().log_softmax(dim=-1)
        chosen = logprobs.gather(1, token_ids[0, 1:, None])[:, 0]
        total -= float(chosen[mask].double().sum())
        count += int(mask.sum())
    return math.exp(total / count) if count else None


def _copy_the_rest(source: Path, folder: Path) -> None:
    """Copy the tokenizer, the chat template and all other files that are not weights."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name != "config.json":
            shutil.copy2(file, folder / file.name)


if __name__ == "__main__":
    main()
