"""A reward model as a service over HTTP."""
