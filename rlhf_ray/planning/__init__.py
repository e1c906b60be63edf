"""The planner: memory, disk and seconds that a run needs, by arithmetic over a model's config.json.

Nothing here imports torch: a plan answers within a second or two. A new device is a row of
`devices.py`, a new DeepSpeed role a row of `needs.py`.
"""
