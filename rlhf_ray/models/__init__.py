"""Language models and tokenizers: loading, built-in models, conversion, reward models, cards."""
