"""Services over HTTP: a reward model (`service.py`), or a language model (`front.py`).

The endpoint of a language model shares its requests among replicas (`fleet.py`, `replica.py`).
"""
