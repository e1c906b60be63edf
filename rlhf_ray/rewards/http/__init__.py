"""Reward kind `reward.http`: scores of a service over HTTP.

`scorer.py` is the scorer, `client.py` calls with time limits and retries, `messages.py` has the
protocol.
"""
