"""Dictionaries inside the language model: at which tensors they stand in, and what the model makes of that."""
