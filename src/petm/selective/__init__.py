"""Statistics of selective prediction on arrays: metrics, thresholds, probability of error, monitoring."""
