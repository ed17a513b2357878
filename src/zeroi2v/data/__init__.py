"""How does a video on disk become a batch of clips?"""
