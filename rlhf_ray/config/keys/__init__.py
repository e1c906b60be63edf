"""Keys of a request: the stages that read them, and the keys meant by other names."""
