"""Low-rank adapters on a base model, and both opinions in one pass."""
