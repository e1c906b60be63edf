"""Cleaning steps, which drop or change samples: checks, limits, language, personal data,
normalization, decontamination and deduplication. `pipeline` puts them in order.
"""
