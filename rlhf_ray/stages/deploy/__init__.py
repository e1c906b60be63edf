"""Compress, export, serve and chat."""
