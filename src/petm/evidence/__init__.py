"""What a prediction's suspicion can be computed from, behind one protocol."""
