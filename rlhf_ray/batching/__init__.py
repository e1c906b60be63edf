"""Layout of samples in rows and micro-batches, and their balance over ranks."""
