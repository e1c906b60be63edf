"""Engines that come and go within a run: their states, their return, the accounts."""
