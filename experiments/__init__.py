"""Experiments behind the documentation. Not part of the package; run from the root of the repository.

- ``python -m experiments detection``: second opinions, controls and rival detectors (`docs/benchmark/detection.md`).
- ``python -m experiments speed``: one pass beside its rivals, ways to fit (`docs/benchmark/speed.md`).
- ``ideas``, ``small_bert``, ``fit_time``: how the recipes were found, and what they cost (the same page).
- ``python -m experiments.suite``: ten base models with halved test data, and `learn` on shifted data beside controls.
- ``guarantee`` (`docs/concepts/guarantee.md`), ``paper_grid`` (`docs/benchmark/reproduction.md`), ``grade_speed`` and
  ``fit_memory`` (`docs/benchmark/scale.md`), ``service_load`` (`docs/benchmark/speed.md`): each by
  ``python -m experiments.NAME``.

``make experiments-test`` runs their tests.
"""
