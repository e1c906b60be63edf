"""Seconds of a forward pass, a training pass and a decode, from a roofline.

Matrix products at a share of the device's peak, attention at the rate of its kernels, elementwise
work and the cache at the bandwidth of memory, gathers and sums at the bandwidth of links. Two
efficiencies are calibrated on published runs (docs/planning.md); all else is stated here.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.planning.devices import Accelerator
from rlhf_ray.planning.lengths import Lengths
from rlhf_ray.planning.shape import ModelShape

# Share of the peak that attention kernels reach, forward and backward.
_ATTENTION_SHARE = 0.6
# Of the bandwidth that elementwise kernels reach, and of links that collectives do.
_ELEMENTWISE_SHARE, _LINK_SHARE = 0.8, 0.8
# Grouped products of experts are small: their rate next to that of large products.
_EXPERT_SHARE = 0.4
# Elementwise bytes of a token in a layer: norms in float32, sums, rotations, the gate.
_NORM_BYTES, _ROTATION_BYTES, _GATE_BYTES, _ROUTING_BYTES = 80, 20, 10, 12
# Of a logit, and of a number that goes into or comes out of a layer with an adapter.
_LOGIT_BYTES, _ADAPTED_BYTES = 16, 16
# Scheduling of a decode step, and what the engine does on a CPU for each of its sequences.
_STEP_SECONDS, _SEQUENCE_SECONDS = 2e-3, 20e-6
# One all-reduce of a small message over links, and over the network.
_LINKED_SECONDS, _NETWORK_SECONDS = 15e-6, 60e-6
# Kernels of a layer that are launched one by one without graphs.
_EAGER_LAYER_SECONDS = 60e-6
_SLICES = 64
_WORDS = {
    "weights": "reading weights",
    "cache": "reading the cache",
    "products": "matrix products",
    "steps": "the fixed time of a step",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiencies:
    """The two calibrated numbers.

    Attributes:
        decode: share of the bandwidth that a decode step reaches, reading weights and cache.
        gemm: share of `gemm_share` that the matrix products of training reach.
    """

    decode: float
    gemm: float


CALIBRATED = Efficiencies(decode=0.47, gemm=0.56)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Division of a model over GPUs.

    Attributes:
        tensor, pipeline: ranks that share a layer, and stages.
        micro_batches: of an optimizer step in one pipeline, for its bubble.
        gathered_bytes: weights and gradients that one micro-batch gathers and sums (ZeRO-3, FSDP).
        nodes: that the gathers span.
        gpus_per_node: whose networks work together.
    """

    tensor: int = 1
    pipeline: int = 1
    micro_batches: float = 1.0
    gathered_bytes: float = 0.0
    nodes: int = 1
    gpus_per_node: int = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Work of a pass in units of a forward pass: matrix products, attention, messages of slices."""

    products: float
    attention: float
    messages: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Kernels of training next to those of eager bfloat16.

    Attributes:
        products: rate of matrix products.
        traffic: bytes of elementwise work.
    """

    products: float = 1.0
    traffic: float = 1.0


EAGER = Kernels()
FORWARD = Passes(products=1, attention=1, messages=2)
# The backward pass of attention computes its scores again.
UPDATE = Passes(products=3, attention=3.5, messages=4)
CHECKPOINTED = Passes(products=4, attention=4.5, messages=6)
# The weights under an adapter have no gradient.
ADAPTED = Passes(products=2, attention=3.5, messages=4)
ADAPTED_CHECKPOINTED = Passes(products=3, attention=4.5, messages=6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Seconds of a phase, and the part that is the most of them."""

    seconds: float
    binds: str


def pass_seconds(
    shape: ModelShape,
    device: Accelerator,
    passes: Passes,
    *,
    tokens: float,
    context: float,
    split: Split = Split(),
    micro_batch: float = 8192,
    kernels: Kernels = EAGER,
    efficiencies: Efficiencies = CALIBRATED,
) -> Timed:
    """Seconds of one GPU for a pass over its share of the tokens.

    Args:
        tokens: of the pass, divided by its GPUs.
        context: see `Lengths.context`.
        micro_batch: tokens between two gathers of a rank.
        kernels: compiled, or in another format.
    """
    rate = device.tflops * 1e12 * device.gemm_share * efficiencies.gemm * kernels.products
    experts = shape.experts_weights * shape.experts_per_token / max(1, shape.experts)
    plain = shape.active_weights - experts
    products = 2 * passes.products * tokens * (plain + experts / _EXPERT_SHARE) / rate
    width = shape.query_width + shape.output_width
    attended = passes.attention * tokens * shape.layers * width * context
    attention = attended / (device.tflops * 1e12 * _ATTENTION_SHARE)
    of_token = shape.layers * _elementwise_bytes(shape) + _LOGIT_BYTES * shape.vocab
    if passes in (ADAPTED, ADAPTED_CHECKPOINTED):
        of_token += shape.layers * _ADAPTED_BYTES * _adapted_width(shape)
    moved = passes.products * tokens * of_token * kernels.traffic
    elementwise = moved / (device.memory_gb_s * 1e9 * _ELEMENTWISE_SHARE)
    compute = products + attention + elementwise
    compute *= 1 + (split.pipeline - 1) / max(split.micro_batches, 1.0)
    sliced = _slice_seconds(shape, device, passes, tokens=tokens, split=split)
    gathers = tokens / micro_batch * _gather_seconds(device, split)
    # Gathers go on while the GPU computes.
    parts = {
        "matrix products": products,
        "attention": attention,
        "memory bandwidth": elementwise,
        "messages of slices": sliced,
        "gathers of weights": max(0.0, gathers - compute),
    }
    seconds = max(compute, gathers) + sliced
    return Timed(seconds=seconds, binds=max(parts, key=lambda name: parts[name]))


def _elementwise_bytes(shape: ModelShape) -> float:
    keys = shape.cached_width / 2
    return (
        _NORM_BYTES * shape.hidden
        + _ROTATION_BYTES * (shape.query_width + keys)
        + _GATE_BYTES * shape.inner_per_token
        + _ROUTING_BYTES * shape.hidden * shape.experts_per_token
    )


def _adapted_width(shape: ModelShape) -> float:
    """Numbers that go into and come out of the linear layers of a layer."""
    keys = shape.cached_width / 2
    return 7 * shape.hidden + 2 * (shape.query_width + keys) + 3 * shape.inner_per_token


def _slice_seconds(
    shape: ModelShape, device: Accelerator, passes: Passes, *, tokens: float, split: Split
) -> float:
    """All-reduces of hidden states between the ranks that share a layer."""
    if split.tensor == 1:
        return 0.0
    sent = 2 * (split.tensor - 1) / split.tensor * 2 * shape.hidden
    whole = tokens * split.tensor * passes.messages * shape.layers * sent
    return whole / (device.link_gb_s * 1e9 * _LINK_SHARE)


def _gather_seconds(device: Accelerator, split: Split) -> float:
    """Seconds of the gathers and sums of one micro-batch."""
    within = split.gathered_bytes / (device.link_gb_s * 1e9)
    # All network cards of a node carry a part.
    between = split.gathered_bytes / (device.network_gb_s * 1e9 * split.gpus_per_node)
    return max(within, between if split.nodes > 1 else 0.0) / _LINK_SHARE


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpeed:
    """An engine as the roofline sees it.

    Attributes:
        gpus: that share its weights.
        at_once: sequences that it runs together at most.
        width: bytes of a number.
        is_eager: without graphs.
    """

    shape: ModelShape
    device: Accelerator
    gpus: int
    at_once: float
    width: int = 2
    is_eager: bool = False
    efficiencies: Efficiencies = CALIBRATED

    def step(self, running: float, cached: float) -> tuple[float, str]:
        """Seconds of a decode step of so many sequences with so many tokens in the cache."""
        shape, device = self.shape, self.device
        bandwidth = device.memory_gb_s * 1e9 * self.efficiencies.decode * self.gpus
        weights = self.width * self._read_weights(running) / bandwidth
        cache = self.width * cached * shape.cache_values / bandwidth
        rate = device.tflops * 1e12 * device.gemm_share * self.efficiencies.gemm * self.gpus
        products = 2 * running * shape.active_weights / rate
        fixed = _STEP_SECONDS + _SEQUENCE_SECONDS * running
        if self.is_eager:
            fixed += _EAGER_LAYER_SECONDS * shape.layers
        if self.gpus > 1:
            is_linked = self.gpus <= device.linked
            fixed += 2 * shape.layers * (_LINKED_SECONDS if is_linked else _NETWORK_SECONDS)
        parts = {"weights": weights, "cache": cache, "products": products, "steps": fixed}
        seconds = max(weights + cache, products) + fixed
        return seconds, max(parts, key=lambda name: parts[name])

    def _read_weights(self, running: float) -> float:
        """Weights that a step reads: of the experts those that some token is sent to."""
        shape = self.shape
        read = shape.common_weights + shape.embedding
        if not shape.experts:
            return read
        missed = (1 - shape.experts_per_token / shape.experts) ** max(running, 1.0)
        return read + shape.experts_weights * (1 - missed)


def decode_seconds(
    engine: EngineSpeed, lengths: Lengths, *, samples: float, goes_on: bool = False
) -> Timed:
    """Seconds in which one engine answers so many samples.

    While samples wait, as many run as fit. Then the last ones run out, until the longest ends;
    unless the samples of the next batch take their places.

    Args:
        goes_on: the engine samples the next batch meanwhile, as a run with stale samples does.
    """
    running = min(samples, engine.at_once)
    spent = dict.fromkeys(_WORDS, 0.0)
    one, binds = engine.step(running, running * lengths.mean_context)
    waiting = samples if goes_on else samples - running
    spent[binds] += one * waiting * lengths.mean / running
    if not goes_on:
        last = lengths.last(running)
        for index in range(_SLICES):
            token = (index + 0.5) * last / _SLICES
            left = max(1.0, running * lengths.running(token))
            one, binds = engine.step(left, left * (lengths.prompt + token))
            spent[binds] += one * last / _SLICES
    device = engine.device
    rate = device.tflops * 1e12 * device.gemm_share * engine.efficiencies.gemm * engine.gpus
    spent["products"] += 2 * samples * lengths.prompt * engine.shape.active_weights / rate
    words = _WORDS[max(spent, key=lambda name: spent[name])]
    if waiting > running and samples > running:
        words = f"{words}; {running:.0f} of {samples:.0f} samples run at once"
    return Timed(seconds=sum(spent.values()), binds=words)
