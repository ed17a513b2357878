"""What does a model cost, how fast is it, and what does it look at?"""
