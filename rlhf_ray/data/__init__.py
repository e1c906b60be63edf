"""Data: sources of rows, prompts and their order, examples for training, and preparation of sets.

`sources/` reads rows; `prompts/`, `examples/` and `ptx_texts` make prompts, training examples and
pretraining texts of them; `prepare/` is stage=prepare_data.
"""
