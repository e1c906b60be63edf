"""`stage=export`: a model as others take it over."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.setting import setting


@dataclass
class ExportConfig:
    """What goes beside the weights of `model.path`, into `output_dir/model`."""

    name: str | None = setting(None, "Title of the model card; null takes that of output_dir.")
    licence: str | None = setting(
        None, "Licence of the weights, as an identifier of the hub: apache-2.0, mit, other, ..."
    )
    language: list[str] = setting([], "Languages of the model, as ISO 639-1 codes.")
    base_model: str | None = setting(
        None, "What the model was trained from; null takes model.path of the run."
    )
    run_dir: str | None = setting(
        None,
        "Output folder of the run that made the model, for data, recipe and metrics; null takes "
        "the folder that model.path is in.",
    )
    evaluation_dir: str | None = setting(
        None, "Output folder of a stage=evaluate; its table goes into the card."
    )
    dtype: str = setting(
        "auto",
        "Number format of the weights; auto leaves them as they are.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_shard_gb: float = setting(5.0, "Largest file of weights.", unit="GB", above=0)
