"""Training examples: texts, demonstrations, rankings and feedback, tokenised and masked."""

from __future__ import annotations

from rlhf_ray.data.examples.demonstrations import load_demonstrations
from rlhf_ray.data.examples.feedback import load_feedback
from rlhf_ray.data.examples.rankings import load_rankings
from rlhf_ray.data.examples.sets import ExampleSet
from rlhf_ray.data.examples.texts import load_texts

__all__ = ["ExampleSet", "load_demonstrations", "load_feedback", "load_rankings", "load_texts"]
