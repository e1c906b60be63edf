"""The process of a rank: its device, its process group, its threads and its seed."""

from __future__ import annotations

import os
import random
from datetime import timedelta

import deepspeed
import deepspeed.comm
import numpy as np
import torch
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.utils import groups

from rlhf_ray.training.engine.host_memory import keep_freed_memory
from rlhf_ray.training.engine.meeting import Meeting, meet
from rlhf_ray.training.engine.slicing.autotp import forget_groups


def start_process(
    rank: int,
    world_size: int,
    master_addr: str,
    master_port: int,
    *,
    timeout_s: float,
    cpu_threads: int,
    seed: int,
    on_gpu: bool,
    meeting: Meeting | None = None,
) -> None:
    """Make this process a rank of its role: device, environment, process group, threads, seed.

    Call it before an engine is built. CPUs use gloo; GPUs use NCCL, a rank its first visible GPU.

    Args:
        master_addr, master_port: address of the role's rank 0.
        timeout_s: a collective operation that waits longer for another rank fails.
        meeting: of the ranks; None where they meet as in a test, at a free port.
        on_gpu: train on the GPU; if False on the CPU, even if a GPU is visible.

    Raises:
        ValueError: `on_gpu` is set, and torch sees no GPU.
    """
    _choose_device(on_gpu)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        # Without it DeepSpeed takes the number of NUMA nodes for the number of ranks here.
        LOCAL_SIZE="1",
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
    )
    torch.set_num_threads(cpu_threads)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    _skip_shared_memory_op()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # DeepSpeed takes the process group that is there.
    meeting = meeting or Meeting()
    meet(
        backend,
        rank,
        world_size,
        master_addr,
        master_port,
        timeout=timedelta(seconds=meeting.timeout_s or timeout_s),
        listener=meeting.listener,
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _choose_device(on_gpu: bool) -> None:
    """Make torch and DeepSpeed agree on a device, before either has touched one."""
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(
            f"num_gpus is above 0, but torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES')}): num_gpus=0 runs this role on the CPU"
        )
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        set_accelerator(CPU_Accelerator())
        keep_freed_memory()


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling an operator that this package does not use.

    deepspeed 0.19.8, comm/torch.py: `TorchBackend` builds `deepspeed_shm_comm` on a CPU, in 100 s.
    Only tensor-parallel inference calls it. Remove this when the operator is built on demand.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def stop_process() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group()
        # deepspeed 0.19.8 keeps the group of hpZ in the module, and would take it for the next one.
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
        forget_groups()
