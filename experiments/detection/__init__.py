"""How well each method finds A's errors: all methods on the same A and the same samples."""
