"""What does the paper do to a transformer? Temporal heads and linear adapters, in pure PyTorch."""
