"""Cost of a micro-batch in the decoder, by the layout of its samples in rows.

Three layouts give the same numbers:

- padded: one sample a row;
- packed: several samples in a row, without attention across them;
- shared: like packed, and samples with the same prompt form a tree: the prompt once, then the
  rest of each sample, which attends to the prompt and to itself.

None is best for all: packing and sharing save tokens in the matrix products of the layers, but a
row with a mask computes attention between all pairs of its tokens. Long rows of a small model
lose by it, short answers to a long prompt of a large model win.

Plain functions of counts. The unit of cost is one token through the layers without attention.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# How much longer a pair of query and key takes than its multiplications would in the matrix
# products of the layers: softmax, and reading the mask. Measured on a CPU (docs/benchmarks.md).
_CAUSAL_PAIR_OVERHEAD = 1.25
_MASKED_PAIR_OVERHEAD = 1.15
# Another layout has to be cheaper than padded rows by this share: estimates are not that exact,
# and padded rows need no mask.
MIN_SAVING = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleShape:
    """Lengths of a sample that a layout depends on.

    Attributes:
        needed: leading tokens that a prediction needs, up to the one before the last predicted
            token; 0 if nothing is predicted.
        prompt: tokens before the first predicted one; at most `needed`.
        family: equal for samples whose prompts are equal, token by token.
    """

    needed: int
    prompt: int
    family: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCosts:
    """Attention of one query to one key, in all layers, in tokens through the layers.

    Attributes:
        causal: without a mask; only pairs of a token and the tokens before it are computed.
        masked: with a mask; all pairs of a row are computed.
    """

    causal: float
    masked: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Samples in rows.

    Attributes:
        kind: "padded", "packed", "shared", or "varlen" (`packing.lay_out_varlen`).
        trees: trees of every row; a tree is the numbers of samples that share their prompt, a
            single sample unless `kind` is "shared".
        width: tokens of the longest row; all rows are padded to it.
        cost: estimate, in tokens through the layers.
    """

    kind: str
    trees: tuple[tuple[tuple[int, ...], ...], ...]
    width: int
    cost: float

    @property
    def num_tokens(self) -> int:
        """Tokens through the layers, padding counted."""
        return len(self.trees) * self.width


def pair_costs(*, hidden_size: int, num_layers: int, num_parameters: int) -> PairCosts:
    """Costs of attention relative to the matrix products of the layers.

    A token takes two floating-point operations per parameter; a pair takes 4 x `hidden_size` in
    every layer (query times key, weight times value).

    Args:
        num_parameters: of the decoder, without its embeddings.
    """
    assert num_parameters > 0, "a decoder without parameters"
    pair = 4 * hidden_size * num_layers / (2 * num_parameters)
    return PairCosts(causal=_CAUSAL_PAIR_OVERHEAD * pair, masked=_MASKED_PAIR_OVERHEAD * pair)


def choose_rows(
    shapes: Sequence[SampleShape], costs: PairCosts, *, kinds: Sequence[str], max_tokens: int
) -> Rows:
    """The cheapest layout; padded rows unless another one clearly saves.

    Args:
        shapes: of the samples of a micro-batch.
        kinds: the layouts to choose from.
        max_tokens: bound of rows x longest row; exceeded only if every layout exceeds it.
    """
    candidates = [rows for kind in kinds for rows in _CANDIDATES[kind](shapes, costs)]
    assert candidates, f"no layout for {len(shapes)} samples among {kinds}"
    # Memory first: the cheapest layout may have more tokens than fit. The plan of micro-batches
    # bounds sizes by other estimates, so if nothing fits, the smallest is tried.
    fitting = [rows for rows in candidates if rows.num_tokens <= max_tokens]
    smallest = min(candidates, key=lambda rows: rows.num_tokens)

    def weighted(rows: Rows) -> float:
        return rows.cost * (1 - MIN_SAVING) if rows.kind == "padded" else rows.cost

    return min(fitting or [smallest], key=weighted)


def _padded(shapes: Sequence[SampleShape], costs: PairCosts) -> Iterator[Rows]:
    width = max((shape.needed for shape in shapes), default=0)
    per_row = width + costs.causal * width * (width + 1) / 2
    trees = tuple(((sample,),) for sample in range(len(shapes)))
    yield Rows(kind="padded", trees=trees, width=width, cost=len(trees) * per_row)


def _packed(shapes: Sequence[SampleShape], costs: PairCosts) -> Iterator[Rows]:
    trees = [(sample,) for sample, shape in enumerate(shapes) if shape.needed]
    yield from _fillings("packed", trees, shapes, costs)


def _shared(shapes: Sequence[SampleShape], costs: PairCosts) -> Iterator[Rows]:
    trees: dict[int, tuple[int, ...]] = {}
    for sample, shape in enumerate(shapes):
        if shape.needed:
            trees[shape.family] = (*trees.get(shape.family, ()), sample)
    yield from _fillings("shared", list(trees.values()), shapes, costs)


_CANDIDATES = {"padded": _padded, "packed": _packed, "shared": _shared}


def _fillings(
    kind: str, trees: list[tuple[int, ...]], shapes: Sequence[SampleShape], costs: PairCosts
) -> Iterator[Rows]:
    """Distribute trees over 1, 2, 4, ... rows, up to one tree per row.

    Long rows need less padding and more attention, since with a mask attention grows with the
    square of the width. Doubling tries few numbers of rows, and the cost is flat near its minimum.
    """
    sizes = [_tree_tokens(tree, shapes) for tree in trees]
    num_rows = 1
    while trees:
        rows, width = _fill(sizes, num_rows)
        per_row = width + costs.masked * width * width
        yield Rows(
            kind=kind,
            trees=tuple(tuple(trees[tree] for tree in row) for row in rows),
            width=width,
            cost=num_rows * per_row,
        )
        if num_rows == len(trees):
            return
        num_rows = min(2 * num_rows, len(trees))


def _tree_tokens(tree: Sequence[int], shapes: Sequence[SampleShape]) -> int:
    prompt = shapes[tree[0]].prompt
    return prompt + sum(shapes[sample].needed - prompt for sample in tree)


def _fill(sizes: Sequence[int], num_rows: int) -> tuple[list[list[int]], int]:
    """Fill rows largest tree first, each into the emptiest row; also return the widest row.

    All rows are padded to the widest one, so even rows waste the least.
    """
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    loads = [(0, row) for row in range(num_rows)]
    for tree in sorted(range(len(sizes)), key=lambda tree: (-sizes[tree], tree)):
        load, row = loads[0]
        rows[row].append(tree)
        heapq.heapreplace(loads, (load + sizes[tree], row))
    return rows, max(load for load, _ in loads)
