"""DeepSpeed's checkpoint files, read without running code from them."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from rlhf_ray.plain_files import load_plain

# The classes that DeepSpeed 0.19.8 writes next to tensors, at ZeRO stages 0 to 3, in float32 and
# bfloat16, with and without offload. None of them does anything when it is restored.
_CLASSES = (LossScaler, ZeroStageEnum, fragment_address)


class PlainCheckpointEngine(TorchCheckpointEngine):
    """Writes as DeepSpeed's engine does, and reads data alone.

    DeepSpeed's engine reads with `weights_only=False`: whoever can write to a checkpoint runs code
    in every rank that loads it.
    """

    def load(self, path: str, map_location: Any = None) -> Any:
        """Load one file.

        Raises:
            UnsafeFileError: the file asks for code.
            DamagedFileError: the file is truncated or of another kind.
        """
        return load_plain(path, classes=_CLASSES, map_location=map_location)
