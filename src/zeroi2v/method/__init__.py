"""What does the paper do to a transformer? Temporal heads, linear adapters and their folding, in pure PyTorch."""
