"""Saving of a model, tried before it is trained, and done so that nothing that can be is lost."""
