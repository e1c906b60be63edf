"""Processes that run reward functions, and the borders around them.

    reward worker -- guard -- keeper -- runner (the functions, and what they start)

`process.py` is the worker's side: it starts the three, sends samples and reads replies
(`replies.py` believes none of them unchecked). `keeper.py` is the program of guard and keeper: the
keeper inherits every process that the functions leave behind, and ends all of them.
`runner.py` calls the functions. `limits.py` and `family.py` bound memory, files and processes,
`environment.py` the variables that the functions see, and `sandbox.py` builds the command line of
bubblewrap. `channel.py` carries the messages.

No process of these three imports torch or Ray, unless a user's function does.
"""
