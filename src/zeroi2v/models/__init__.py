"""How does a timm tower become a video classifier, and how is a model saved, loaded, merged?"""
