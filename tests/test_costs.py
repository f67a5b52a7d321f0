from dataclasses import replace

import pytest

from petm.costs import FittingCost, Line, Rates, Stage

PLAIN = FittingCost(
    epochs=2,
    adapters=3,
    copies=1,
    parts=3,
    trials=3,
    model_bytes=1000,
    laid_out_bytes=100,
    adapter_bytes=60,
    sample_bytes=8,
    example_bytes=8,
    feature_bytes=16,
    cache_budget=10**6,
    example_budget=10**6,
    data_budget=10**9,
    forward=Stage(10, Line(0, 1)),
    gradient=Stage(20, Line(4, 2), batch=8),
    features=Stage(7, Line(0, 1)),
    step=Stage(5, Line(50, 3)),
    rates=Rates(passes=100, steps=10),
)


def test_operations_and_seconds_by_hand() -> None:
    found = PLAIN.at(5000)
    passes = (5000 + 3 * 2000) * 10 + 5000 * 20 + 3 * 5000 * 7
    steps = 2 * 3 * 3 * 5000 * 5
    assert found.operations == passes + steps
    assert found.seconds == pytest.approx(passes / 100 + steps / 10)


def test_few_samples_are_tried_and_held_as_they_are() -> None:
    found = PLAIN.at(10)
    assert found.operations == 4 * 10 * 10 + 10 * 20 + 30 * 7 + 2 * 3 * 30 * 5
    lasting = 1000 + 100 + 80 + 32 * 30 + 24 * 10 + 80 + 480
    assert found.memory_bytes == pytest.approx(
        lasting + (2 + 1 / 3) * 60 + 1.2 * max(10 + (4 + 2 * 8), 10, 50 + 3 * 10)
    )


def test_without_fgsm_cache_and_copies() -> None:
    bare = replace(
        PLAIN, copies=0, parts=1, trials=0, example_bytes=0, feature_bytes=0, gradient=None, features=None, adapters=1
    )
    found = bare.at(1000)
    assert found.operations == 1000 * 10 + 2 * 1000 * 5
    assert found.memory_bytes == pytest.approx(1000 + 100 + 8 * 1000 + 32 * 1000 + 3 * 60 + 1.2 * (256 + 50 + 3 * 256))
    assert (found.cache_bytes, found.cache_in_memory) == (0, True)


def test_the_cache_goes_to_disk_beyond_its_budget() -> None:
    most = 10**6 // (3 * 16)
    within, beyond = PLAIN.at(most), PLAIN.at(most + 1)
    assert (within.cache_in_memory, beyond.cache_in_memory) == (True, False)
    assert beyond.cache_bytes == 3 * 16 * (most + 1)
    each = 8 + 8 + 32 * 3 + 24  # data, examples, index, draws
    assert within.memory_bytes - beyond.memory_bytes == 3 * 16 * most - each


def test_growth_is_linear_where_the_formula_says_so() -> None:
    one, two, three = (PLAIN.at(n * 10**9) for n in (1, 2, 3))
    for name in ("operations", "seconds", "memory_bytes", "cache_bytes"):
        first, second, third = (getattr(found, name) for found in (one, two, three))
        assert third - second == pytest.approx(second - first)
        assert second > 1.9 * first
    assert two.operations - one.operations == 10**9 * (20 + 3 * 7 + 2 * 3 * 3 * 5), "errors are counted on 10,000"
    # Data of 8 GB stay on disk, and as many examples are not held: what is left is the index.
    assert two.memory_bytes - one.memory_bytes == 10**9 * (32 * 3 + 24)


def test_examples_that_are_not_held_are_made_whenever_they_are_read() -> None:
    uncached = replace(PLAIN, features=None, feature_bytes=0)
    most = 10**6 // 8
    within, beyond = uncached.at(most), uncached.at(most + 1)
    assert beyond.operations - within.operations == 20 * (2 * 3 * (most + 1) - most) + 2 * 3 * 3 * 5
    cached = PLAIN.at(most + 1).operations - PLAIN.at(most).operations
    assert cached == 20 + 3 * 7 + 2 * 3 * 3 * 5, "features are computed once, and so are the examples"
