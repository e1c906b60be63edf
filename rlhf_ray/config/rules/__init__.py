"""Rules between keys, one module per topic, and their table."""
