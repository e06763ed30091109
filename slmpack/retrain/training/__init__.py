"""Training: settings, predicted memory, the trainer with its checkpoints and losses."""
