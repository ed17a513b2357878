"""How is a model trained, resumed and evaluated?"""
