"""Language models and tokenizers: loading, the built-in tiny ones, conversion."""
