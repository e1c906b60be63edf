"""Updates: scoring, the trainer, controllers, device sharing."""
