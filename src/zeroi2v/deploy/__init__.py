"""How does a trained model answer outside of training? It predicts for videos, and it is merged."""
