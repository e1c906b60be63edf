"""The roles that train, healed within a run: ended, started again, brought to where they were."""
