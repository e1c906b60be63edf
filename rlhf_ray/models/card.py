"""Model card: origin, recipe, metrics and licence of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import SCORER_SWITCHES
from rlhf_ray.config.keys.readers import is_read
from rlhf_ray.config.stages import STAGE_NAMES

_UNKNOWN = "not known"
# Folders that a run writes its models to.
_RESULTS = ("model", "model_ema", "adapter")
# What a run may learn from, and the key that names it.
_DATA = (("prompts", "data.path"), ("examples", "examples.path"), ("texts", "texts.path"))
# Keys of a run's configuration that the card shows as the recipe, in this order.
_RECIPE = (
    "recipe",
    "stage.name",
    "seed",
    "num_steps",
    "prompts_per_step",
    "samples_per_prompt",
    "generation.max_response_tokens",
    "algorithm.advantage",
    "algorithm.policy_loss",
    "algorithm.kl_coefficient",
    "training.learning_rate",
    "training.dtype",
    "fit.num_epochs",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The run that a model comes from.

    Attributes:
        config: configuration of the run; empty if unknown.
        summary: numbers of summary.json.
    """

    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """Value of a dotted key of the configuration; None if missing."""
        found: Any = self.config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def read_origin(folder: Path) -> Origin:
    """Read configuration and summary of a run; missing files give empty values.

    Raises:
        RequestError: a file cannot be read.
    """
    return Origin(
        config=_read(folder / "config.yaml", yaml.safe_load),
        summary=_read(folder / "summary.json", json.loads),
    )


def _read(path: Path, parse: Any) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RequestError(
            f"{path} cannot be read: {error}; correct the file, or move it away"
        ) from error
    if not isinstance(found, Mapping):
        raise RequestError(
            f"{path} holds a {type(found).__name__}, and no names with values; correct the file, "
            f"or move it away"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Content of the card.

    Attributes:
        base_model: the model that training started from, or None.
        evaluation: a Markdown table, or empty.
    """

    name: str
    licence: str
    language: list[str]
    base_model: str | None
    num_parameters: int
    dtype: str
    origin: Origin
    evaluation: str


def model_card(facts: CardFacts) -> ModelCard:
    """Make the card with its metadata, in the form of the Hugging Face hub."""
    base = facts.base_model
    data = ModelCardData(
        model_name=facts.name,
        license=facts.licence,
        language=facts.language or None,
        # The metadata links to the hub, so that a local folder must not be named.
        base_model=base if base and _is_hub_name(base) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rlhf_ray", "reinforcement-learning-from-human-feedback"],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_lines(facts)) + "\n")


def licence_note(licence: str) -> str | None:
    """A sentence about a licence that is no SPDX identifier; None for one that is, and other."""
    # Of packaging, which transformers requires.
    from packaging.licenses import canonicalize_license_expression

    try:
        canonicalize_license_expression(licence)
    except ValueError:
        if licence == "other":
            return None
        return (
            f"export.licence={licence} is no SPDX identifier (as apache-2.0, mit and cc-by-4.0 "
            f"are) and is written into the card as it is: see that the hub knows this name, as it "
            f"does llama3.1 and gemma"
        )
    return None


def _lines(facts: CardFacts) -> Iterator[str]:
    origin = facts.origin
    yield from (f"# {facts.name}", "")
    yield f"A causal language model of {facts.num_parameters:,} parameters in {facts.dtype},"
    yield "trained with rlhf_ray."
    yield from ("", f"Trained from: {_shown(facts.base_model)}", "", "## Data", "")
    read = [(what, value) for what, key in _DATA if (value := origin.value(key))]
    yield from (f"- {what}: {_shown(value)}" for what, value in read)
    yield from () if read else (_UNKNOWN,)
    yield from ("", "## Recipe", "")
    stage = origin.value("stage.name")
    # A run's configuration has all keys; those that its stage does not read say nothing of it.
    read = [key for key in _RECIPE if stage not in STAGE_NAMES or is_read(key, stage)]
    told = [(key, origin.value(key)) for key in read]
    yield from (f"- {key}: {value}" for key, value in told if value is not None)
    if rewards := _rewards(origin):
        yield f"- reward: {rewards}"
    if origin.config:
        yield from ("", "The whole configuration is in `training_config.yaml`.")
    yield from ("", "## Metrics", "")
    numbers = {k: v for k, v in origin.summary.items() if isinstance(v, int | float)}
    yield from (f"- {name}: {value:.6g}" for name, value in numbers.items())
    yield from ("", facts.evaluation) if facts.evaluation else ()
    if not numbers and not facts.evaluation:
        yield _UNKNOWN
    yield from ("", "## Licence", "", facts.licence)


def _rewards(origin: Origin) -> str:
    functions = origin.value("reward.functions") or []
    names = [f if isinstance(f, str) else f.get("path", _UNKNOWN) for f in functions]
    names += [str(v) for k in SCORER_SWITCHES if (v := origin.value(k))]
    return ", ".join(shown_name(name) for name in names)


def _shown(value: Any) -> str:
    """Show only the name of a file or folder, without private paths of the machine."""
    return shown_name(str(value)) if value else _UNKNOWN


def shown_name(text: str) -> str:
    """The name of a file or folder; anything else, such as a hub name or an address, as it is.

    The result of a run is a folder `model` in the folder of the run, whose name says more.
    """
    if not _is_local_path(text):
        return text
    path = Path(text)
    is_result = path.name in _RESULTS and path.parent.name not in ("", "..", "~")
    return path.parent.name if is_result else path.name


def copy_configuration(run_dir: Path, folder: Path) -> None:
    """Write the configuration of a run, if it left one, to the folder of its model."""
    file = run_dir / "config.yaml"
    if file.is_file():
        told = without_private_paths(file.read_text(encoding="utf-8"))
        (folder / "training_config.yaml").write_text(told, encoding="utf-8")


def without_private_paths(configuration: str) -> str:
    """The text of a run's configuration with names in the place of absolute paths."""
    paths = sorted(set(_absolute_paths(yaml.safe_load(configuration))), key=len, reverse=True)
    for path in paths:
        configuration = configuration.replace(path, shown_name(path))
    return configuration


def default_title(base_model: str | None, stage: str | None, output_dir: Path) -> str:
    """Title of a card without a configured one: the base model and the stage, if they are known."""
    if base_model:
        return "-".join(part for part in (shown_name(base_model), stage) if part)
    return output_dir.name or "Language model"


def _absolute_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _absolute_paths(one)
    elif isinstance(value, str) and value.startswith(("/", "~/")) and len(value) > 1:
        yield value


def _is_local_path(text: str) -> bool:
    if "://" in text:
        return False
    is_rooted = text.startswith(("/", "~", "."))
    return is_rooted or text.count("/") > 1 or ("/" in text and Path(text).exists())


def _is_hub_name(path: str) -> bool:
    return path.count("/") == 1 and not _is_local_path(path) and ":" not in path
