"""What surrounds a training run: checkpoints, logs, progress, early warnings."""
