"""Disk space for the tokens of examples, before a row is read. Imports nothing heavy."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import ExamplesConfig, SourceConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.example_columns import held_out_source
from rlhf_ray.data.sources.compressed import COMPRESSED
from rlhf_ray.data.sources.read import source_files
from rlhf_ray.disk_space import free_bytes, size_in_words, space_of
from rlhf_ray.stages.stage import describe_training

# A token takes four bytes, and is of about four characters in English. Rows have columns that are
# not learnt, so that only much less space is surely too little.
_CHARACTERS_PER_TOKEN = 4
_LEAST_SHARE = 0.5
_SHOWN_FROM = 10**6
_UNITS = ("", " thousand", " million", " billion", " trillion")


def describe_fit(config: Config) -> str:
    """The batch and the placement of a stage that learns from examples, and its disk space."""
    space = described_space(config.examples)
    return describe_training(config) + (f"\n\n# Examples\n{space}" if space else "")


def described_space(examples: ExamplesConfig) -> str:
    """A line about the files of examples and the space of their tokens; empty for small ones."""
    size = _text_bytes(examples)
    if size < _SHOWN_FROM:
        return ""
    return (
        f"{size_in_words(size)} of rows: about {_short(size // _CHARACTERS_PER_TOKEN)} tokens, "
        f"which take about {size_in_words(size)} in {_folder(examples)} on the driver's node "
        "while the run goes on (examples.scratch_dir)"
    )


def check_space(examples: ExamplesConfig) -> None:
    """Refuse files of examples whose tokens surely do not fit on the disk.

    A disk that fills up all the same ends the run while rows are read.

    Raises:
        RequestError: says how much is missing where.
    """
    folder = _folder(examples)
    if examples.scratch_folder is not None and not folder.is_dir():
        raise RequestError(f"examples.scratch_dir is {str(folder)!r}: there is no such folder")
    size = _text_bytes(examples)
    free = free_bytes(folder)
    if free < size * _LEAST_SHARE:
        raise RequestError(
            f"examples.path is {examples.path!r}: the tokens of {size_in_words(size)} of rows "
            f"take about as much, and there is {space_of(folder)}; set examples.scratch_dir to a "
            "folder on a larger disk of the driver's node"
        )


def _folder(examples: ExamplesConfig) -> Path:
    return examples.scratch_folder or Path(tempfile.gettempdir())


def _text_bytes(examples: ExamplesConfig) -> int:
    sources: list[SourceConfig] = [examples]
    if examples.has_eval_source:
        sources.append(held_out_source(examples))
    return sum(_of_file(source) for source in sources)


def _of_file(source: SourceConfig) -> int:
    """Bytes of the rows of a file, or of those of a folder; 0 where sizes do not tell."""
    if source.limit is not None:
        return 0
    return sum(_row_bytes(path) for path in source_files(source))


def _row_bytes(path: Path) -> int:
    if path.suffix.lower() in COMPRESSED:
        return 0
    if path.suffix.lower() not in (".parquet", ".pq"):
        return path.stat().st_size
    # Imported here, because it takes 0.1 s and other files do not need it.
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return 0  # Whoever reads the rows says what is wrong.
    groups = range(metadata.num_row_groups)
    return sum(metadata.row_group(number).total_byte_size for number in groups)


def _short(number: float) -> str:
    """A count with three digits and its unit."""
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}{_UNITS[-1]}"
