"""How do views become scores? Training, evaluation and prediction share this folder."""
