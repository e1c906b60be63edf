"""The table of devices: stated figures of accelerators, one row each.

Rates are those of the data sheets, without sparsity. `gemm_share` is the part of the peak that
large matrix products reach in published microbenchmarks: the power limit holds an H100 far below
its peak and an H20 not at all. A new device is one row.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """Stated figures of one device.

    Attributes:
        memory_gib: that a process can allocate, a little less than the name says.
        tflops: peak of matrix products in bfloat16, in 10**12 operations a second.
        gemm_share: part of it that large matrix products reach.
        memory_gb_s: bandwidth of its memory.
        link_gb_s: bandwidth to the devices of its node, in one direction.
        network_gb_s: bandwidth of its share of the node's network.
        linked: devices that have such links to each other.
    """

    memory_gib: float
    tflops: float
    gemm_share: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    linked: int = 8


DEVICES: dict[str, Accelerator] = {
    "a100-40g": Accelerator(
        memory_gib=39.4,
        tflops=312,
        gemm_share=0.85,
        memory_gb_s=1555,
        link_gb_s=300,
        network_gb_s=25,
    ),
    "a100-80g": Accelerator(
        memory_gib=79.1,
        tflops=312,
        gemm_share=0.85,
        memory_gb_s=2039,
        link_gb_s=300,
        network_gb_s=25,
    ),
    "l40s-48g": Accelerator(
        memory_gib=44.4,
        tflops=362,
        gemm_share=0.6,
        memory_gb_s=864,
        link_gb_s=32,
        network_gb_s=12.5,
    ),
    "h20-96g": Accelerator(
        memory_gib=95.0,
        tflops=148,
        gemm_share=0.9,
        memory_gb_s=4000,
        link_gb_s=450,
        network_gb_s=50,
    ),
    "h100-80g": Accelerator(
        memory_gib=79.1,
        tflops=989,
        gemm_share=0.7,
        memory_gb_s=3350,
        link_gb_s=450,
        network_gb_s=50,
    ),
    # The form of 96 GB with the older memory, at 500 W.
    "h100-96g": Accelerator(
        memory_gib=94.0,
        tflops=989,
        gemm_share=0.62,
        memory_gb_s=2400,
        link_gb_s=450,
        network_gb_s=50,
    ),
    "h200-141g": Accelerator(
        memory_gib=139.8,
        tflops=989,
        gemm_share=0.7,
        memory_gb_s=4800,
        link_gb_s=450,
        network_gb_s=50,
    ),
    "b200-180g": Accelerator(
        memory_gib=178.3,
        tflops=2250,
        gemm_share=0.7,
        memory_gb_s=8000,
        link_gb_s=900,
        network_gb_s=50,
    ),
    # Up to 72 of them have links to each other. Their share is fitted to row 7 of docs/planning.md.
    "gb200-186g": Accelerator(
        memory_gib=184.0,
        tflops=2500,
        gemm_share=0.6,
        memory_gb_s=8000,
        link_gb_s=900,
        network_gb_s=100,
        linked=72,
    ),
}
