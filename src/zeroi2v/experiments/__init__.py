"""Which settings do best? Many trainings, compared."""
