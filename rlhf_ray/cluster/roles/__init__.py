"""One file per role: actor and facade."""
