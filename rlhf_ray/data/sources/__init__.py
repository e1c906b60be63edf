"""Sources of rows: files, data sets, Python, built-in."""
