"""How well each method finds the base model's errors: all methods on the same base model and the same samples."""
