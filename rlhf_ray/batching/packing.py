"""Rows of several samples, in which samples with the same prompt share its tokens.

A tree is a prompt and the rest of each sample that begins with it:

    row        p0 p1 p2 | a3 a4 | b3 b4 b5 | q0 q1 | ...
    position    0  1  2    3  4    3  4  5    0  1

A token attends to the tokens before it in its own branch and to its tree's prompt, to nothing
else. In its own padded row it would see the same tokens at the same positions, so every layout
gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch, Packing, Targets, micro_batch
from rlhf_ray.batching.layout_cost import Rows, SampleShape


def sample_shapes(token_ids: Tensor, targets: Targets) -> list[SampleShape]:
    """Shapes of all R samples of `targets`; prompts are compared token by token."""
    num_samples = targets.starts.shape[0]
    never = torch.iinfo(torch.int64).max
    first = torch.full((num_samples,), never, device=token_ids.device)
    first = first.scatter_reduce(0, targets.sample, targets.column, "amin")
    last = torch.zeros_like(first).scatter_reduce(0, targets.sample, targets.column, "amax")
    # One copy to the host for all samples: a comparison on the GPU would wait for it at every
    # prompt. Bytes compare whole prompts, so samples share one only if all of its tokens agree.
    on_host = token_ids.cpu().numpy()
    families: dict[bytes, int] = {}
    shapes = []
    for start, prompt, needed in zip(
        targets.starts.tolist(), first.tolist(), last.tolist(), strict=True
    ):
        # Tokens before the first predicted one are the prompt; tokens before the last predicted
        # one are needed, since that one predicts nothing. They differ in order only if nothing
        # is predicted: then both are 0.
        prompt = min(prompt, needed)
        key = on_host[start : start + prompt].tobytes()
        family = families.setdefault(key, len(families))
        shapes.append(SampleShape(needed=needed, prompt=prompt, family=family))
    return shapes


def lay_out_varlen(
    token_ids: Tensor, targets: Targets, shapes: Sequence[SampleShape]
) -> MicroBatch:
    """Lay all samples out in one row, without padding and without a mask.

    flash-attn takes the lengths of samples of a row. transformers 5 finds them by the positions of
    the only row of a forward pass, which begin at 0 again in every sample. At least one token is
    predicted.
    """
    trees = tuple((sample,) for sample, shape in enumerate(shapes) if shape.needed)
    width = sum(shape.needed for shape in shapes)
    row = Rows(kind="varlen", trees=(trees,), width=width, cost=width)
    return lay_out_packed(token_ids, targets, shapes, row)


def lay_out_packed(
    token_ids: Tensor, targets: Targets, shapes: Sequence[SampleShape], rows: Rows
) -> MicroBatch:
    """Lay the trees of `rows` out; at least one token is predicted."""
    device = token_ids.device
    starts = targets.starts.tolist()
    pieces = _Pieces()
    # Where a sample's prompt and the rest of it start in the flattened rows. They are apart if
    # other branches of the tree stand between them.
    prompt_at, branch_at = [0] * len(shapes), [0] * len(shapes)
    number = 0
    for row, trees in enumerate(rows.trees):
        place = row * rows.width
        for tree in trees:
            prompt = shapes[tree[0]].prompt
            # The tokens are those of any sample of the tree; branch 0 is seen by all branches.
            pieces.add(place, starts[tree[0]], prompt, 0, number, 0)
            after = place + prompt
            for branch, sample in enumerate(tree, start=1):
                prompt_at[sample], branch_at[sample] = place, after
                length = shapes[sample].needed - prompt
                # Positions go on after the prompt in every branch, not after the branch before.
                pieces.add(after, starts[sample] + prompt, length, prompt, number, branch)
                after += length
            place, number = after, number + 1
    source, position_ids, trees, branches = pieces.spread((len(rows.trees), rows.width), device)

    # A token is predicted by the hidden state of the token before it. For the first token of an
    # answer that one is in the shared prompt, so several samples read the same hidden state.
    before = targets.column - 1
    prompts = torch.tensor([shape.prompt for shape in shapes], device=device)[targets.sample]
    in_prompt = torch.tensor(prompt_at, device=device)[targets.sample] + before
    in_branch = torch.tensor(branch_at, device=device)[targets.sample] + before - prompts
    return micro_batch(
        token_ids,
        targets,
        input_ids=torch.where(trees >= 0, token_ids[source], 0),
        packing=Packing(
            position_ids=position_ids,
            # A mask for every pair of 32k tokens has 1 GB: it is not made where none is needed.
            visible=None if rows.kind == "varlen" else _visible(trees, branches),
        ),
        hidden_index=torch.where(before < prompts, in_prompt, in_branch),
    )


def decoder_inputs(decoder: Any, input_ids: Tensor, packing: Packing | None) -> dict[str, Tensor]:
    """Arguments of a transformers decoder for the rows of a `MicroBatch`.

    transformers 5 hands a mask of four dimensions to the attention as it is. Ours is added to
    the scores (0 or minus infinity), which sdpa and eager attention both do.
    """
    if packing is None:
        return {"input_ids": input_ids}
    if packing.visible is None:
        return {"input_ids": input_ids, "position_ids": packing.position_ids}
    mask = torch.zeros(packing.visible.shape, dtype=decoder.dtype, device=input_ids.device)
    mask.masked_fill_(~packing.visible, float("-inf"))
    return {
        "input_ids": input_ids,
        "position_ids": packing.position_ids,
        "attention_mask": mask[:, None],
    }


@dataclass(kw_only=True, slots=True)
class _Pieces:
    """Runs of neighbouring tokens of one sample, with their place, position, tree and branch.

    Python handles runs, of which a micro-batch has a few per sample; single tokens, of which it
    has thousands, are only handled as tensors.
    """

    runs: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)

    def add(
        self, place: int, source: int, length: int, position: int, tree: int, branch: int
    ) -> None:
        self.runs.append((place, source, length, position, tree, branch))

    def spread(
        self, shape: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The source, position, tree (-1 on padding) and branch (0 in the prompt) of each place."""
        place, source, length, position, tree, branch = torch.tensor(
            self.runs, device=device
        ).unbind(1)
        # Expand runs to tokens: the run of every token, and the token's offset in its run.
        piece = torch.arange(length.shape[0], device=device).repeat_interleave(length)
        begin = length.cumsum(0) - length
        offset = torch.arange(piece.shape[0], device=device) - begin[piece]
        places = place[piece] + offset

        def placed(values: Tensor, elsewhere: int) -> Tensor:
            flat = torch.full((shape[0] * shape[1],), elsewhere, device=device)
            flat[places] = values
            return flat.view(shape)

        return (
            placed(source[piece] + offset, 0),
            placed(position[piece] + offset, 0),
            placed(tree[piece], -1),
            placed(branch[piece], 0),
        )


def _visible(trees: Tensor, branches: Tensor) -> Tensor:
    """Attention mask [B, T, T] from the tree and branch [B, T] of each place.

    Padding is one more tree (-1) and sees the padding before it: a row of the mask without any
    visible token would give NaN attention weights, which reach the gradient.
    """
    width = trees.shape[1]
    same_tree = trees[:, :, None] == trees[:, None, :]
    same_branch = branches[:, :, None] == branches[:, None, :]
    in_prompt = branches[:, None, :] == 0
    before = torch.ones(width, width, dtype=torch.bool, device=trees.device).tril()
    return same_tree & (same_branch | in_prompt) & before
