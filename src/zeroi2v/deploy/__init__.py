"""How does a trained model answer for one video?"""
