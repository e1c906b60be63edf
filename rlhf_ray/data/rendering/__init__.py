"""Rendered chats, and the check that a template writes what a row says."""
