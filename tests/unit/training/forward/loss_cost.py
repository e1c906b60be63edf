"""Cost of log-probabilities from hidden states, measured in a separate process.

    python -m tests.unit.training.forward.loss_cost memory plain|chunked    bytes
    python -m tests.unit.training.forward.loss_cost time REPEATS            two lists of seconds

4,096 tokens, a vocabulary of 49,152 and hidden states of SmolLM2's size (576), float32: the head,
the loss of log-probabilities and their backward pass, without the decoder.
"""

from __future__ import annotations

import json
import re
import sys
import time

import torch
from torch import Tensor, nn

from rlhf_ray.training.forward.head_logprobs import Head, HeadInputs, chunked

TOKENS, VOCABULARY, HIDDEN = 4096, 49_152, 576
TEMPERATURE = 0.7


def plain(head: Head, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """All logits, log_softmax, gather, autograd; without the entropy, which would cost more."""
    logprobs = (head.module(inputs.hidden) / inputs.temperature).log_softmax(dim=1)
    return logprobs.gather(1, inputs.targets[:, None])[:, 0], torch.zeros(0)


KERNELS = {"plain": plain, "chunked": chunked}


def make() -> tuple[Head, HeadInputs]:
    torch.manual_seed(0)
    module = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    inputs = HeadInputs(
        hidden=torch.randn(TOKENS, HIDDEN, requires_grad=True),
        targets=torch.randint(0, VOCABULARY, (TOKENS,)),
        support_token_ids=None,
        temperature=TEMPERATURE,
        entropy_gradient=False,
    )
    head = Head(module=module, scale=lambda x: x, is_scaled=False, vocab_size=VOCABULARY)
    return head, inputs


def forward_and_backward(name: str, head: Head, inputs: HeadInputs) -> None:
    head.module.zero_grad()
    inputs.hidden.grad = None
    logprobs, _ = KERNELS[name](head, inputs)
    (logprobs * torch.linspace(-1, 2, TOKENS)).sum().backward()


def peak_bytes(name: str) -> int:
    """Peak memory of this process, minus its memory before the run."""
    head, inputs = make()
    before = memory_bytes("VmRSS")
    forward_and_backward(name, head, inputs)
    return memory_bytes("VmHWM") - before


def memory_bytes(field: str) -> int:
    """A field of /proc/self/status; its peak, unlike getrusage's, leaves out the parent's."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(rf"^{field}:\s+(\d+) kB$", file.read(), re.MULTILINE)
    assert found is not None, field
    return int(found[1]) * 1024


def seconds(repeats: int) -> dict[str, list[float]]:
    """Processor seconds of both kernels in turn, after a warm-up run of each.

    On one thread: with more, what else runs on the machine decides how long they wait for each
    other, and small pieces of work wait more often.
    """
    torch.set_num_threads(1)
    head, inputs = make()
    measured: dict[str, list[float]] = {name: [] for name in KERNELS}
    for number in range(repeats + 1):
        for name, taken in measured.items():
            start = time.process_time()
            forward_and_backward(name, head, inputs)
            if number:
                taken.append(time.process_time() - start)
    return measured


if __name__ == "__main__":
    what, argument = sys.argv[1:3]
    print(json.dumps(peak_bytes(argument) if what == "memory" else seconds(int(argument))))
