"""One dataclass module per group of the configuration."""
