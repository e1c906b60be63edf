"""stage=export: merged weights, tokenizer, chat template, generation settings and a model card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.atomic_file import atomic_folder
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.stages.inputs import check_models
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import Stage

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from rlhf_ray.config.groups.generation import GenerationConfig as EngineConfig


def run(config: Config) -> int:
    """Write `output_dir/model`, whole or not at all.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the model, its base, or what the card is to say cannot be read.
    """
    # Seconds of import, which a description of the stage does not need.
    from rlhf_ray.models import card as cards
    from rlhf_ray.models.builtin import resolve_model_path
    from rlhf_ray.models.checks.whole_model import Use, check_weights
    from rlhf_ray.models.loading import empty_policy, load_tokenizer
    from rlhf_ray.models.merged import adapter_base, load_merged
    from rlhf_ray.models.quiet import without_progress_bars
    from rlhf_ray.models.saving.generation_ends import adapter_ends, joined, read_ends
    from rlhf_ray.models.saving.trial import try_saving

    check_models(config)
    export = config.export
    licence = _licence(export.licence)
    run_dir = Path(export.run_dir or Path(config.model.path).parent).expanduser()
    path = resolve_model_path(config.model.path, seed=config.seed, report=print)
    model = dataclasses.replace(config.model, path=path)
    base = adapter_base(path)
    has_tokenizer = base is None or (Path(path) / "tokenizer_config.json").is_file()
    # An adapter by itself has the tokenizer of its base.
    tokenizer = load_tokenizer(model if has_tokenizer else dataclasses.replace(model, path=base))
    origin = cards.read_origin(run_dir)
    evaluation = _evaluation(export.evaluation_dir)
    whole = model if base is None else dataclasses.replace(model, path=base)
    check_weights(whole, Use.POLICY)
    # First without the weights, which take minutes to load: what cannot be saved fails here.
    ends = joined(read_ends(whole), adapter_ends(Path(path)))
    settings = _generation(config.generation, tokenizer, ends)
    try_saving(empty_policy(whole), tokenizer, path, settings)
    merged = load_merged(model, dtype=export.dtype)
    merged.generation_config = settings
    started_from = export.base_model or origin.value("model.path") or base
    title = cards.default_title(started_from, origin.value("stage.name"), Path(config.output_dir))
    facts = cards.CardFacts(
        name=export.name or title,
        licence=licence,
        language=export.language,
        base_model=started_from,
        num_parameters=merged.num_parameters(),
        dtype=str(merged.dtype).removeprefix("torch."),
        origin=origin,
        evaluation=evaluation,
    )
    target = Path(config.output_dir) / "model"
    with atomic_folder(target) as partial:
        with without_progress_bars():
            merged.save_pretrained(partial, max_shard_size=f"{export.max_shard_gb:g}GB")
        tokenizer.save_pretrained(partial)
        cards.model_card(facts).save(partial / "README.md")
        cards.copy_configuration(run_dir, partial)
    print(f"Result: {target}", flush=True)
    return 0


def _licence(licence: str | None) -> str:
    """The licence; says so if it is none that is known."""
    from rlhf_ray.models.card import licence_note

    assert licence is not None, "a rule asks for it"
    if note := licence_note(licence):
        print(note, flush=True)
    return licence


def _evaluation(folder: str | None) -> str:
    """The table of an evaluation; empty where none is named."""
    if folder is None:
        return ""
    try:
        return (Path(folder).expanduser() / "table.md").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RequestError(
            f"export.evaluation_dir is {folder!r}: {error}; stage=evaluate makes such a folder: "
            f"python -m rlhf_ray.main stage=evaluate evaluation.models.NAME=... output_dir=FOLDER"
        ) from error


def _generation(
    generation: EngineConfig, tokenizer: PreTrainedTokenizerBase, ends: tuple[int, ...]
) -> GenerationConfig:
    """The sampling settings with which the policy was trained.

    Args:
        ends: tokens at which the model stops; it stops at those of its chat template, too.
    """
    from transformers import GenerationConfig

    from rlhf_ray.data.tokens.turn_ends import engine_ends

    all_ends = list(dict.fromkeys([*ends, *engine_ends(tokenizer), tokenizer.eos_token_id]))
    is_sampled = generation.temperature > 0
    sampling = {
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        # transformers writes "no limit" as 0, and reads 50 where there is nothing.
        "top_k": generation.top_k,
    }
    return GenerationConfig(
        do_sample=is_sampled,
        **(sampling if is_sampled else {}),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=all_ends[0] if len(all_ends) == 1 else all_ends,
        pad_token_id=tokenizer.pad_token_id,
        # No max_new_tokens: vLLM would cut every answer of the exported model at the limit of its
        # training, and not say so. The card names that limit.
    )


def _describe(config: Config) -> str:
    return f"# Export\n{config.model.path} in {config.export.dtype}, {config.export.licence}"


STAGE = Stage(name="export", describe=_describe, run=run, check=check_request)
