"""How is a model trained, and how is a training resumed?"""
