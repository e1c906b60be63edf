"""Examples on disk while a process runs: memory has some bytes of each, whatever its length."""
