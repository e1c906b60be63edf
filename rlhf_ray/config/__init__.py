"""What a run can be told: dataclasses with rules, and how YAML and the command line become one."""
