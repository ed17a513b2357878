"""How do views become scores? Everything that evaluation, prediction and serving share, and nothing of training."""
