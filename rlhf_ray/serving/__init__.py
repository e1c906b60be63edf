"""Models as services over HTTP: a reward model, or a language model."""
