"""Memory and disk that a run needs, by arithmetic over the model's configuration."""
