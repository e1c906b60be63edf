"""Rewards of responses.

A reward is a weighted sum of parts. The parts come from reward functions and from scorers, and a
group goes through them in this order:

1. `worker.py` merges the parts of a group that several engines sampled (`merge.py`) and runs the
   functions of `reward.functions` on every sample. They run in a child process with limits
   (`functions/`), and are called once before a run starts (`first_row.py`). `load.py` finds and
   imports them, `signatures.py` checks them without an import, `answers.py` checks what they
   return, `steps.py` puts the rewards of a response's steps on its tokens.
2. One scorer after the other adds its part (`scorer.py`): a reward model
   (`training/roles/reward_scorer.py`), a service over HTTP (`http/`), a language model as a judge
   (`judge.py` asks, `rubric.py` writes the question and reads the score).

A sample without a value is a failure (`outcomes.py`): it leaves its group, is counted, and is
never trained on. `builtin/` holds the functions that come with the package; `protocol.py` is the
interface of a user's function.
"""

from rlhf_ray.rewards.protocol import Reward, RewardSample, StepRewards

__all__ = ["Reward", "RewardSample", "StepRewards"]
