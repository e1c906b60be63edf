"""Configuration: dataclasses with rules, read from YAML files and the command line."""
