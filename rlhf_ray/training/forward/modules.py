"""The two forward passes of training: log-probabilities of a policy, values of a critic.

Each is one module whose `forward` runs everything, because ZeRO-3 gathers parameters in hooks
around the calls of modules.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ray.batching.layout import Packing
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.training.forward.fused_head import LigerOrChunks, liger
from rlhf_ray.training.forward.head_logprobs import Head, HeadKernel, HeadOverRows, chunked
from rlhf_ray.training.forward.sequences import Sequences, WholeSequences

# Scaling of the logits after the head, by the field of the model's configuration that sets it.
_LOGIT_SCALINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma
    "logits_scaling": lambda logits, scale: logits / scale,  # Granite
    "logit_scale": lambda logits, scale: logits * scale,  # Cohere
}


class PolicyForward(nn.Module):
    """Log-probabilities of given tokens under a causal language model.

    Args:
        kernel: implementation of the output head; see `head_kernel`.

    Raises:
        ValueError: the kernel does not support the model, or is not installed.
    """

    def __init__(self, model: PreTrainedModel, *, kernel: str = "chunked") -> None:
        super().__init__()
        self.model = model
        self.sequences: Sequences = WholeSequences()
        fields = model.config.to_dict()
        scalings = [
            (scale, float(fields[name]))
            for name, scale in _LOGIT_SCALINGS.items()
            if fields.get(name) is not None
        ]

        def scale_logits(logits: Tensor) -> Tensor:
            for scale, factor in scalings:
                logits = scale(logits, factor)
            return logits

        module: Any = model.get_output_embeddings()
        self._head = Head(
            module=module,
            scale=scale_logits,
            is_scaled=bool(scalings),
            vocab_size=model.config.get_text_config().vocab_size,
        )
        self.head_over_rows = HeadOverRows(self._head, head_kernel(kernel, self._head))

    def forward(
        self,
        input_ids: Tensor,
        hidden_index: Tensor,
        targets: Tensor,
        temperature: float,
        support_token_ids: Tensor | None,
        packing: Packing | None = None,
        entropy_gradient: bool = False,
        over_support: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder, and the head on the hidden states that predict a target only.

        Args:
            input_ids [B, T], hidden_index [M], targets [M], support_token_ids [M, K], packing:
                see `MicroBatch`.
            entropy_gradient: give the entropy a gradient too, for a loss that contains it.
            over_support: log-probabilities [M, K] over the support, instead of the targets'.

        Returns:
            logprobs [M], with gradient, and entropy [M]; both of the softmax of
            logits / temperature over the support.
        """
        states = self.sequences.states(self.model.get_decoder(), input_ids, hidden_index, packing)
        support = support_token_ids
        logprobs, entropies = self.head_over_rows(
            states.hidden,
            targets[states.rows],
            None if support is None else support[states.rows],
            temperature,
            entropy_gradient,
            over_support,
        )
        return states.join(logprobs), states.join(entropies)

    @torch.no_grad()
    def check_head(self) -> None:
        """Check that decoder and head give the logits of the model's own forward pass.

        Raises:
            ValueError: the logits differ: the model scales them in an unknown way.
        """
        embedding: Any = self.model.get_input_embeddings()
        device = embedding.weight.device
        tokens = torch.arange(1, 9, device=device)[None] % embedding.weight.shape[0]
        expected = self.model(input_ids=tokens, use_cache=False).logits[0].float()
        positions = torch.arange(8, device=device)
        states = WholeSequences().states(self.model.get_decoder(), tokens, positions, None)
        found = self._head.logits(states.hidden).float()
        difference = float((found - expected).abs().max())
        # Only rounding may differ: the head sees another shape.
        bound = 0.02 * float(expected.abs().max()) + 1e-6
        if not difference <= bound:
            raise ValueError(
                f"{type(self.model).__name__} does something to its logits that this project does "
                f"not know of: they differ by {difference:.3g} from decoder and head alone. "
                f"Supported fields of a model's configuration: {', '.join(_LOGIT_SCALINGS)}"
            )


class ValueForward(nn.Module):
    """Values of tokens under a backbone with a scalar head.

    The value of a token is the value of the state in which it was sampled: the output of the head
    at the token before it.
    """

    model: ScalarHeadModel

    def __init__(self, model: ScalarHeadModel) -> None:
        super().__init__()
        self.model = model
        self.sequences: Sequences = WholeSequences()

    def forward(
        self, input_ids: Tensor, hidden_index: Tensor, packing: Packing | None = None
    ) -> Tensor:
        """Values [M] in float32 at `hidden_index` [M]; see `MicroBatch`."""
        states = self.sequences.states(self.model.backbone, input_ids, hidden_index, packing)
        values = self.model.head(states.hidden)[:, 0]
        return states.join(values.to(torch.promote_types(values.dtype, torch.float32)))


def disable_dropout(module: nn.Module) -> None:
    """Make the forward pass depend on weights and tokens alone, even with a gradient.

    A probability ratio between two passes with different dropout masks is noise, so the model is in
    evaluation mode. Layers with gradient checkpointing recompute activations only in training mode:
    they stay in it, and their own dropout is set to 0.
    """
    module.eval()
    for layer in module.modules():
        attributes = vars(layer)
        if attributes.get("gradient_checkpointing") is True:
            layer.training = True
            for name, value in attributes.items():
                if "drop" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)


def _auto(head: Head) -> HeadKernel:
    return LigerOrChunks(head) if torch.cuda.is_available() else partial(chunked, head)


_KERNELS: dict[str, Callable[[Head], HeadKernel]] = {
    "auto": _auto,
    "chunked": lambda head: partial(chunked, head),
    "liger": liger,
}


def head_kernel(name: str, head: Head) -> HeadKernel:
    """Make the implementation `name` (`auto`, `chunked`, `liger`) for a head.

    Raises:
        ValueError: the implementation does not support the head, or is not installed.
    """
    return _KERNELS[name](head)
