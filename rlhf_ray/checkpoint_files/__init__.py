"""Files of a checkpoint that every process may read: the manifest, and the facts of a role."""
