"""When every worker was at work in a step."""
