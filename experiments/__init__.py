"""Experiments behind the documentation. Not part of the package; run from the root of the repository.

- ``python -m experiments detection``: second opinions, controls and rival detectors (`docs/benchmark.md`).
- ``python -m experiments speed``: one pass beside its rivals, ways to fit (`docs/speed.md`).
- ``ideas``, ``small_bert``, ``fit_time``: how the recipes were found, and what they cost (`docs/benchmark.md`).
- ``python -m experiments.suite``: ten base models with halved test data, and `learn` on shifted data beside controls.
- ``guarantee`` (`docs/guarantee.md`), ``paper_grid`` (`docs/reproduction.md`), ``grade_speed`` (`docs/grading.md`),
  ``fit_memory`` (`docs/scale.md`), ``service_load`` (`docs/serving.md`): each by ``python -m experiments.NAME``.

``make experiments-test`` runs their tests.
"""
