"""Training the generator: batches, loop, checkpoints, validation."""
