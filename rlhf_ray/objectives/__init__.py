"""Training objectives: from logits and a batch to a loss and its metrics."""
