"""Training: losses and their weights, metrics, optimizers, and the loop."""
