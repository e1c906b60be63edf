"""This project against the raw libraries and a peer, on the same work; not part of the wheel."""
