"""Policy losses, one idea per file."""
