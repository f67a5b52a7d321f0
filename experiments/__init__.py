"""Experiments behind the documentation: benchmarks, rival detectors, ideas. Not part of the package."""
