"""One file about a run, `report.html`, that opens without a server or a network."""
