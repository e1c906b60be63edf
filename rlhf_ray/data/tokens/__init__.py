"""From texts to token ids: beginnings, ends, special tokens."""
