"""Statistics of selective prediction on arrays: metrics, thresholds, probability of error, monitoring.

All functions raise `petm.errors.ArgumentError` for arrays of different shapes and for an argument outside its range.
"""
