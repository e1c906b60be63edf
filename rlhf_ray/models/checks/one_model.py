"""Folders with more than one set of weights, of which two libraries read different ones.

transformers reads the first of a few names. vLLM reads every safetensors file of the folder itself,
or those that an index names: a second file with the same weights replaces the first without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.checks.present import WEIGHT_FILES
from rlhf_ray.models.checks.weight_files import files_of_index, have_same_values, header_of

_INDEX = ".index.json"
_SAFETENSORS = "model.safetensors"
_MAX_SHOWN = 5


def check_one_set(folder: Path, key: str) -> None:
    """Refuse a folder with the same weights in one file and in several.

    Args:
        key: dotted name of the setting with the folder.

    Raises:
        RequestError: names both.
    """
    for name in WEIGHT_FILES:
        if not (folder / name).is_file():
            continue
        index = f"{name}{_INDEX}"
        if name.endswith(_INDEX) or not (folder / index).is_file():
            return  # Nobody reads an older format next to this one.
        if set(files_of_index(folder / index, f"{key} is {str(folder)!r}")) != {name}:
            raise RequestError(
                f"{key} is {str(folder)!r}, which holds two sets of weights: {name}, and the files "
                f"of {index}. Some libraries read the first and others the second: move one of "
                f"them away"
            )


def check_engine_reads(folder: Path, key: str) -> None:
    """Refuse a folder of which vLLM would read other files than transformers.

    Args:
        key: dotted name of the setting with the folder.

    Raises:
        RequestError: names the files.
    """
    about = f"{key} is {str(folder)!r}"
    index = folder / f"{_SAFETENSORS}{_INDEX}"
    if index.is_file():
        below = [name for name in files_of_index(index, about) if Path(name).name != name]
        if below:
            raise RequestError(
                f"{about}: {index.name} takes weights from {_shown(below)}, and vLLM reads no file "
                f"in a sub-folder: move them next to it, and change the index"
            )
        return
    others = sorted(file for file in folder.glob("*.safetensors") if file.name != _SAFETENSORS)
    if (folder / _SAFETENSORS).is_file():
        own = header_of(folder / _SAFETENSORS, about)
        again = [file.name for file in others if own.keys() & header_of(file, about).keys()]
        if again:
            raise RequestError(
                f"{about}: {_shown(again)} holds weights of the same names as {_SAFETENSORS}, and "
                f"vLLM reads all safetensors files of a folder, so that the one that it reads last "
                f"would count: move it away"
            )
    elif others and any((folder / name).is_file() for name in WEIGHT_FILES):
        raise RequestError(
            f"{about}: vLLM reads the safetensors files of a folder if there are any, here "
            f"{_shown([file.name for file in others])}, and transformers the weights in "
            f"pytorch_model.bin: move away what is not meant"
        )


def check_tied(
    folder: Path, key: str, weights: Mapping[str, Tensor], empty: PreTrainedModel
) -> None:
    """Refuse two matrices in the files where config.json says that there is one.

    transformers would keep the two apart, and vLLM would read one of them for both.

    Args:
        weights: of the files, by name.
        empty: the model of config.json.

    Raises:
        RequestError: names both.
    """
    for one, other in empty.all_tied_weights_keys.items():
        if one not in weights or other not in weights:
            continue
        if not have_same_values(folder, one, other, f"{key} is {str(folder)!r}"):
            raise RequestError(
                f"{key} is {str(folder)!r}: config.json says tie_word_embeddings=true, and its "
                f"files have {one} and {other} with different values. Set it to false in "
                f"config.json if the model was trained so; otherwise take {one} out of the files"
            )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"{', '.join(names[:_MAX_SHOWN])}{more}"
