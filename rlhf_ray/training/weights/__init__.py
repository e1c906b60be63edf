"""Named weights of a sharded model: gathered, adapted, averaged, frozen."""
