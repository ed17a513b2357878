"""Where does a model look? Attention and Grad-CAM of its heads."""
