"""Scenarios of models that are larger than a rank: how they are sharded. See `scenarios`."""

from __future__ import annotations

import ctypes
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_ray.config.deepspeed.zero import TrainedZeroConfig
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.records import Coefficients
from rlhf_ray.training.engine.process import stop_process
from rlhf_ray.training.engine.shards import is_partitioned
from rlhf_ray.training.engine.starting import initialize
from rlhf_ray.training.forward import fused_head
from rlhf_ray.training.roles.reward_scorer import RewardScorer
from tests.stack.training.rank import Rank, record_gradients, small_chunks
from tests.stack.training.samples import KL_COEFFICIENT, VOCABULARY
from tests.stack.training.scenarios import two_steps

# Every parameter is sharded, and released after each use: the weights of the tests are so small
# that DeepSpeed would keep all of them.
NOTHING_KEPT = TrainedZeroConfig(
    persistence_elements=0, max_live_elements=0, max_reuse_elements=0, prefetch_elements=0
)
LORA = LoraConfig(r=2, target_modules=["q_proj"])


@contextmanager
def moved_elements() -> Iterator[list[int]]:
    """Collect the number of elements that `Module.to` moves to a device in each call.

    Those of parameters that are neither sharded nor without values.
    """
    moved: list[int] = []
    original = nn.Module.to

    def to(self: nn.Module, *arguments: Any, **named: Any) -> nn.Module:
        device, *_ = torch._C._nn._parse_to(*arguments, **named)
        whole = (p for p in self.parameters() if not is_partitioned(p) and not p.is_meta)
        if device is not None:
            moved.append(sum(parameter.numel() for parameter in whole))
        return original(self, *arguments, **named)

    nn.Module.to = to
    try:
        yield moved
    finally:
        nn.Module.to = original


def moves(here: Rank) -> dict[str, Any]:
    """Most elements that one `Module.to` moves while each role starts at stage 3."""
    sharded: dict[str, Any] = {"zero_stage": 3}
    roles: dict[str, Callable[[], Any]] = {
        "policy": lambda: here.learner(**sharded),
        "offloaded policy": lambda: here.learner(
            **sharded, offload_parameters=True, offload_optimizer=True
        ),
        "policy with an EMA": lambda: here.learner(**sharded, ema_decay=0.9),
        "policy with an adapter": lambda: here.learner(**sharded, lora=LORA),
        "policy in bfloat16": lambda: here.learner(**sharded, dtype="bfloat16"),
        "random policy": lambda: here.sft_trainer(**sharded, random_weights=True),
        "critic": lambda: here.critic(**sharded),
        "reward model": lambda: here.reward_trainer(**sharded),
        "reference": lambda: here.reference(**sharded),
        "reference with an EMA": lambda: here.reference(**sharded, decay=0.9),
        "reward scorer": lambda: reward_scorer(here),
    }
    found = {}
    for name, start in roles.items():
        with moved_elements() as moved, start() as role:
            whole = [p for p in _module_of(role).parameters() if not is_partitioned(p)]
            found[name] = {"moved": max(moved, default=0), "whole": len(whole)}
    return found


def _module_of(role: Any) -> Any:
    engine = role._started
    return engine._engine.module


def reward_scorer(here: Rank) -> Any:
    settings = here._role_settings({"zero_stage": 3, "normalize": False})
    path = str(here.folder / "reward_model")
    return here._started(
        RewardScorer(
            reward_model=ModelRewardConfig(path=path, **settings),
            model=here.model,
            seed=0,
            timeout_s=60.0,
        )
    )


def gathers(here: Rank, **settings: Any) -> dict[str, Any]:
    """An update with the head on three rows at a time; how often its weight is gathered.

    The head is tied: its weight is the embedding's.
    """
    with (
        small_chunks(3 * VOCABULARY),
        here.learner(zero_stage=3, zero=NOTHING_KEPT, **settings) as learner,
    ):
        calls = _record_gathers(learner, learner._model.get_output_embeddings().weight)
        gradients = record_gradients(learner)
        metrics = learner.update([here.experience], coefficients=Coefficients(kl=KL_COEFFICIENT))
        return {
            "metrics": metrics,
            "gradient": gradients[0],
            "gathered": sum(calls),
            "micro_batches": len(here.experience.micro_batches),
        }


def _record_gathers(role: Any, weight: Any) -> list[bool]:
    """Return a list that gets an entry for each later gather: whether the weight was in it."""
    calls: list[bool] = []

    def recorded(gather: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Any, *arguments: Any, **named: Any) -> Any:
            params = list(params)
            calls.append(any(other is weight for other in params))
            return gather(params, *arguments, **named)

        return call

    for parameter in role._engine.module.parameters():
        parameter.all_gather_coalesced = recorded(parameter.all_gather_coalesced)
    return calls


class KeptWeight(torch.autograd.Function):
    """A stand-in for Liger's operator: it keeps the weight, and reads it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, targets, temperature, _, _, _ = inputs
        logprobs = (hidden @ weight.T / temperature).log_softmax(dim=1)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.temperature = temperature
        entropy = -(logprobs.exp() * logprobs).sum(dim=1)
        ctx.mark_non_differentiable(entropy)
        return -logprobs.gather(1, targets[:, None])[:, 0], entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        slope = (hidden @ weight.T / ctx.temperature).softmax(dim=1)
        slope[torch.arange(targets.shape[0]), targets] -= 1.0
        slope = slope * gradients[0][:, None] / ctx.temperature
        return slope @ weight, slope.T @ hidden, None, None, None, None, None


def with_a_fused_head(here: Rank) -> dict[str, Any]:
    """`gathers` with `head_kernel=liger`, whose operator is a stand-in."""
    before, here.model.head_kernel = here.model.head_kernel, "liger"
    operator, fused_head._liger_function = fused_head._liger_function, lambda: KeptWeight
    try:
        return gathers(here)
    finally:
        here.model.head_kernel, fused_head._liger_function = before, operator


def unlike_models(here: Rank) -> dict[str, str]:
    """The message where rank 1 finds a model with fewer layers than rank 0 reads."""
    shorter = here.folder / "shorter"
    before = here.model
    if here.rank == 1:
        shutil.copytree(before.path, shorter)
        settings = json.loads((shorter / "config.json").read_text())
        (shorter / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 1}))
        here.model = replace(before, path=str(shorter))
    try:
        with here.learner(zero_stage=3):
            return {"error": ""}
    except ValueError as error:
        stop_process()
        return {"error": str(error)}
    finally:
        here.model = before


def not_finite(here: Rank, zero_stage: int) -> dict[str, str]:
    """The message where one number of a weight is NaN, and one of another infinite."""
    broken = here.folder / f"broken_{here.rank}_{zero_stage}"
    before = here.model
    shutil.copytree(before.path, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = torch.nan
    weights["model.embed_tokens.weight"][5, 1] = -torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    here.model = replace(before, path=str(broken))
    try:
        with here.learner(zero_stage=zero_stage):
            return {"error": ""}
    except ValueError as error:
        stop_process()
        return {"error": str(error)}
    finally:
        here.model = before


def start_peak(here: Rank, **settings: Any) -> dict[str, float]:
    """Bytes that this process holds at the most, more than before, while a model is sharded."""
    large = here.model
    # A small model first: the libraries load half of themselves at the first start.
    here.model = replace(large, path=str(here.folder / "small"))
    with here.sft_trainer(zero_stage=3, layout="padded", **settings):
        here.model = large
    peak = PeakMemory()
    shard = initialize.shard_module

    def measured(*arguments: Any, **named: Any) -> None:
        shard(*arguments, **named)
        peak.stop()

    initialize.shard_module = measured
    try:
        with here.sft_trainer(zero_stage=3, layout="padded", **settings) as trainer:
            weights = sum(p.ds_numel for p in trainer._engine.module.parameters())
    finally:
        initialize.shard_module = shard
    return {"peak": float(peak.bytes), "weights": 4.0 * weights}


class PeakMemory:
    """The largest growth of the memory that this process holds, sampled until `stop`."""

    def __init__(self) -> None:
        self._before = _held_bytes()
        self.bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopped.wait(0.002):
            self.bytes = max(self.bytes, _held_bytes() - self._before)


class _HeapFigures(ctypes.Structure):
    """Result of mallinfo2(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _held_bytes() -> int:
    """Bytes that this process has allocated and not freed.

    Not its resident memory: a rank on a CPU keeps what it has freed, so that a second start would
    seem to need nothing. Mapped files do not count.
    """
    figures = ctypes.CDLL(None).mallinfo2
    figures.restype = _HeapFigures
    found = figures()
    return found.uordblks + found.hblkhd


Scenario = Callable[[Rank], dict[str, Any]]

_HPZ = TrainedZeroConfig(hpz_partition_size=2, persistence_elements=0)
_IN_BFLOAT16 = TrainedZeroConfig(gradient_dtype="bfloat16", communication_dtype="bfloat16")

SHARDED: dict[str, Scenario] = {
    "moves": moves,
    "unlike_models": unlike_models,
    "not_finite_zero_2": partial(not_finite, zero_stage=2),
    "not_finite_zero_3": partial(not_finite, zero_stage=3),
    "gathers": gathers,
    "gathers_recomputed": lambda r: gathers(r, gradient_checkpointing=True),
    "gathers_of_a_frozen_head": lambda r: gathers(r, lora=LORA),
    "with_a_fused_head": with_a_fused_head,
    "two_steps_nothing_kept": lambda r: two_steps(r, zero_stage=3, zero=NOTHING_KEPT),
    "two_steps_hpz": lambda r: two_steps(r, zero_stage=3, zero=_HPZ),
    **{
        f"gradients_in_bfloat16_zero_{s}": lambda r, s=s: two_steps(
            r, zero_stage=s, dtype="bfloat16", zero=_IN_BFLOAT16
        )
        for s in (2, 3)
    },
    "passed_on": lambda r: two_steps(
        r,
        zero_stage=3,
        extra_deepspeed_config={
            "steps_per_print": 3,
            "zero_optimization": {"sub_group_size": 500, "stage3_allgather_sequential": True},
        },
    ),
}
SIZES: dict[int, dict[str, Scenario]] = {
    number: {
        "random": lambda r: start_peak(r, random_weights=True),
        "converted": lambda r: start_peak(r, dtype="bfloat16"),
    }
    for number in (1, 2)
}
