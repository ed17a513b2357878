"""How do views become scores? Evaluation, prediction and serving share this; training does not."""
