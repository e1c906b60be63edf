"""Loaded by vLLM into its worker: what a test may break there."""

from __future__ import annotations

from torch import nn

from rlhf_ray.generation.weights import receiver

_mend_tied_head = receiver._mend_tied_head


class BreakableWorker:
    """Methods that a vLLM worker gets; `collective_rpc` calls them."""

    def leave_out_mend(self, leave_out: bool) -> None:
        """Publish without the mend for tied embeddings, or with it again."""
        receiver._mend_tied_head = _nothing if leave_out else _mend_tied_head


def _nothing(*_: nn.Module) -> None:
    pass
