"""Files that a model's folder must have, by their names. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.config.errors import RequestError

# What transformers reads, the first one that is there.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Formats that an engine may read under any name.
_ENGINE_ENDINGS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)


def no_weights(folder: Path, key: str) -> RequestError:
    """The refusal of a folder without weights.

    Args:
        key: dotted name of the setting with the folder.
    """
    return RequestError(
        f"{key} is {str(folder)!r}, a folder without weights: none of {', '.join(WEIGHT_FILES)} "
        f"is there; copy them again"
    )


def check_weights_there(folder: Path, key: str, *, any_name: bool) -> None:
    """Refuse a folder without files of weights.

    Args:
        any_name: an engine loads it, which also reads other files.

    Raises:
        RequestError: names the files.
    """
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return
    if not (any_name and any(file.suffix in _ENGINE_ENDINGS for file in folder.iterdir())):
        raise no_weights(folder, key)


def check_tokenizer_there(folder: Path, key: str) -> None:
    """Refuse a folder without any file of a tokenizer.

    Raises:
        RequestError: names the files.
    """
    is_there = any((folder / name).is_file() for name in _TOKENIZERS)
    if not is_there and not any(folder.glob("*.tiktoken")):
        raise RequestError(
            f"{key} is {str(folder)!r}, a folder without a tokenizer: none of "
            f"{', '.join(_TOKENIZERS)} is there; copy them again, or name the folder of a "
            f"tokenizer in model.tokenizer_path"
        )
