"""What does a model cost? Parameters, multiply-adds, memory and time."""
