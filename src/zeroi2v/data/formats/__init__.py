"""How does each kind of source list its videos, classes and splits?"""
