"""Parts of a pipeline: what is known of its stages before the first one starts."""
