"""The start of a DeepSpeed engine: its optimizer, and a module that is sliced or sharded."""
