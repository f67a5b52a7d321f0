"""The base models and data on which evidence, choice and `learn` are judged."""
