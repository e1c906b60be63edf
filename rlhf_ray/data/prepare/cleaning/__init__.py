"""Steps that drop or change samples of the data stage."""
