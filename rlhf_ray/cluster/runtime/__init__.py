"""Ray sessions, actor processes, supervision, diagnosis."""
