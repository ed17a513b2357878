"""How does a timm tower become a video classifier, and how is that saved, loaded and merged?"""
