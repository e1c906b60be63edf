"""vLLM's OpenAI server in a process that ends with its parent."""
