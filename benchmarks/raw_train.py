"""torch alone: forward and backward of the work's tokens, at this project's own layout.

    python -m benchmarks.raw_train MODEL REPEATS RESULT

The same micro-batches in the same rows, the head on response positions only. No optimiser step, no
clipping, no metrics.
"""

from __future__ import annotations

import time

import torch
from torch.nn import functional

from benchmarks.work import arguments, rollout_group, work_config, work_prompts, write_result
from rlhf_ray.batching.packing import decoder_inputs
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.batching.row_layout import RowLayout, row_layout
from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.experience.build import build_experience
from rlhf_ray.models.loading import load_policy
from rlhf_ray.records import Coefficients, Experience


def main() -> None:
    model_path, repeats, result = arguments()
    config = work_config(model_path)
    torch.set_num_threads(config.training.cpu_threads)
    model = load_policy(config.model, dtype=config.training.dtype).eval()
    vocab_size = model.get_input_embeddings().weight.shape[0]
    batch = build_experience(
        [rollout_group(prompt, vocab_size) for prompt in work_prompts(config)],
        reference=None,
        values=None,
        old=None,
        old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE,
        algorithm=config.algorithm,
        coefficients=Coefficients(),
        learner=RankPlan(
            num_ranks=1,
            max_tokens_per_micro_batch=config.training.max_tokens_per_micro_batch,
            layout=config.training.layout,
        ),
        critic=None,
        seed=0,
        step=0,
    )
    ((experience,),) = batch.learner
    layout = row_layout(model.get_decoder(), config.training, config.model.attention)
    forward_and_backward(model, experience, layout)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        forward_and_backward(model, experience, layout)
        seconds.append(time.perf_counter() - start)
    write_result(result, {"raw_train_s": seconds})


def forward_and_backward(model: torch.nn.Module, experience: Experience, layout: RowLayout) -> None:
    """The policy gradient of all micro-batches, accumulated and thrown away."""
    for rows in experience.micro_batches:
        batch = layout.lay_out(
            experience.token_ids,
            experience.lengths,
            experience.loss_mask,
            experience.support_token_ids,
            rows,
        )
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        inputs = decoder_inputs(decoder, batch.input_ids, batch.packing)
        hidden = decoder(**inputs, use_cache=False).last_hidden_state
        logits = head(hidden.flatten(0, 1)[batch.hidden_index])
        losses = functional.cross_entropy(logits, batch.targets, reduction="none")
        weighted = losses * experience.advantages[batch.token_index]
        (weighted.sum() / experience.num_loss_tokens).backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
