"""Bytes of the groups that wait in a checkpoint, at most: of later batches, and kept for replay."""

from __future__ import annotations

from rlhf_ray.config.run import Config
from rlhf_ray.generation.sampling import num_returned

# Token id, loss mask, log-probability, version of the weights; of a text about as much as its ids.
_TOKEN_BYTES, _TEXT_BYTES = 4 + 1 + 4 + 4, 5
# Place in the text, reward, end of a step.
_STEP_BYTES = 4 + 8 + 1
_ID_BYTES = 4


def num_waiting(config: Config) -> int:
    """Groups that wait in a checkpoint of this run, at most; 0 without checkpoints."""
    if config.is_fit or not config.checkpoint.every_steps:
        return 0
    selection = config.rollout_selection
    started = selection.prompts_to_start(config.prompts_per_step)
    if selection.dynamic:  # Groups without variance stay, as stopgaps.
        started += selection.max_replacements_per_step
    replayed = selection.replay_capacity if selection.replay_groups_per_step else 0
    return config.max_staleness * started + replayed


def waiting_bytes(config: Config) -> int:
    """Bytes of these groups, if every sample is as long as it may be."""
    of_token = _TOKEN_BYTES + _TEXT_BYTES
    if config.generation.top_k:
        of_token += _ID_BYTES * (1 + num_returned(config.generation.top_k, vocab_size=2**31))
    if config.algorithm.rewards_steps:
        of_token += _STEP_BYTES
    samples = num_waiting(config) * (config.samples_per_prompt + config.algorithm.num_greedy)
    return samples * config.max_sequence_tokens * of_token
