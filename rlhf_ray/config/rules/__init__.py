"""Rules between keys, one module per group, and the table of them."""
