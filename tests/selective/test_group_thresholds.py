"""A guaranteed risk in each group: the cells, their share of the level, small groups, and what is refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from experiments.guarantee_groups import SAMPLES, below, cutoffs, draw, judged, risks
from petm._internal.records import Record
from petm.errors import ArgumentError, BundleError
from petm.selective.group_thresholds import MARGIN, group_thresholds, results_by_group
from petm.selective.groups import Groups
from petm.selective.thresholds import Threshold, class_thresholds, risk_threshold

RANDOM = np.random.default_rng(0)


def sample(sizes: dict[str, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    names = [name for name, size in sizes.items() for _ in range(size)]
    suspicion = random.random(len(names))
    return suspicion, random.random(len(names)) < suspicion**3 / 2, names


def test_every_draw_of_a_known_population_keeps_the_risk_in_every_group() -> None:
    row = judged(("site", "device"), 0.1, 40)
    assert row["violated"].count <= binom.isf(1e-4, 40, 0.05)
    assert row["one_threshold"]["violated"].count == 40  # so the groups differ, and the judge sees it


def test_the_judge_of_the_experiment_knows_the_risk_of_every_group() -> None:
    suspicion, wrong, values = draw(np.random.default_rng(1))
    threshold = group_thresholds(suspicion, wrong, values, max_risk=0.1)
    more = [draw(np.random.default_rng(seed)) for seed in range(2, 42)]
    exact, counts = risks(*below(cutoffs(threshold, ("site", "device")))), {}
    for scores, errors, groups in more:
        trusted = threshold.trusts(scores, threshold.groups.places(groups))
        for found in results_by_group(threshold, groups, trusted, errors):
            taken = found.coverage * found.samples
            bad = counts.setdefault((found.column, found.value), [0, 0])
            bad[0] += taken
            bad[1] += taken * found.risk if taken else 0
    for group, (taken, bad) in counts.items():
        assert bad / max(taken, 1) == pytest.approx(exact[group], abs=4 * math.sqrt(0.1 / max(taken, 1)) + 1e-9)
    assert sum(len(scores) for scores, _, _ in more) == 40 * SAMPLES


def test_one_column_is_what_the_classes_have_at_the_same_level() -> None:
    suspicion, wrong, names = sample({"a": 3000, "b": 2000})
    threshold = group_thresholds(suspicion, wrong, {"site": names}, max_risk=0.05)
    by_class = class_thresholds(
        suspicion, wrong, np.array([0 if name == "a" else 1 for name in names]), classes=2, max_risk=0.05
    )
    assert threshold.groups.cells == (("a",), ("b",))
    assert threshold.values[:2] == by_class.values


def test_a_group_that_is_trusted_whole_leaves_its_level_to_the_others() -> None:
    suspicion, wrong, names = sample({"a": 3000, "b": 2000})
    wrong &= np.array(names) == "a"  # b has no error
    found = group_thresholds(suspicion, wrong, {"site": names}, max_risk=0.05, confidence=0.9)
    inside = np.array(names) == "a"
    alone = risk_threshold(suspicion[inside], wrong[inside], max_risk=0.05, confidence=0.9)
    shared = risk_threshold(suspicion[inside], wrong[inside], max_risk=0.05, confidence=0.95)
    assert found.values[1] == math.inf
    assert shared.value <= found.values[0] <= alone.value
    assert found.values[0] > shared.value


def test_overlapping_groups_are_unions_of_cells_that_each_keep_the_risk() -> None:
    suspicion, wrong, values = draw(np.random.default_rng(3))
    threshold = group_thresholds(suspicion, wrong, values, max_risk=0.1)
    places = threshold.groups.places(values)
    for (column, value), own in threshold.groups.members().items():
        inside = values[column] == value
        trusted = threshold.trusts(suspicion, places) & inside
        assert set(places[trusted]) <= set(own)
    for place, part in enumerate(threshold.classes[: len(threshold.groups.cells)]):
        cell = suspicion[(places == place) & (suspicion < part.value)]
        if len(cell):
            assert part.risk < 0.1
            assert part.coverage == pytest.approx(len(cell) / (places == place).sum())


def test_small_groups_are_named_and_have_a_threshold_together() -> None:
    few = {f"s{number}": 20 for number in range(40)}
    suspicion, wrong, names = sample({"a": 3000} | few)
    threshold = group_thresholds(suspicion, wrong, {"site": names}, max_risk=0.1)
    assert threshold.groups.rare == (tuple(sorted(few)),)
    together = np.array([name in few for name in names])
    assert threshold.classes[-1].max_risk == 0.1  # 800 samples suffice together
    places = threshold.groups.places({"site": names})
    assert set(places[together]) == {2}
    assert threshold.groups.name(2) == "other groups"
    assert threshold.groups.places({"site": ["a", "unknown", None, float("nan"), ""]}).tolist() == [0, 2, 2, 2, 2]


def test_too_few_in_small_groups_have_the_threshold_of_all_which_guarantees_nothing_for_them() -> None:
    suspicion, wrong, names = sample({"a": 3000, "b": 10})
    threshold = group_thresholds(suspicion, wrong, {"site": names}, max_risk=0.1)
    pooled = risk_threshold(suspicion, wrong, max_risk=0.1)
    assert threshold.classes[-1].value == pooled.value
    assert threshold.classes[-1].max_risk is None
    assert threshold.classes[-1].confidence is None
    assert threshold.holds


def test_a_combination_too_rare_is_not_trusted_as_it_belongs_to_groups_with_a_guarantee() -> None:
    suspicion, wrong, sites = sample({"a": 3000, "b": 2000})
    devices = ["x" if site == "a" else "y" for site in sites]
    devices[0] = "y"  # the only one of a and y
    threshold = group_thresholds(suspicion, wrong, {"site": sites, "device": devices}, max_risk=0.1)
    groups = threshold.groups
    assert groups.cells == (("a", "x"), ("b", "y"))
    places = groups.places({"site": ["a", "a", "c"], "device": ["x", "y", "z"]})
    assert places.tolist() == [0, 2, 3]
    assert threshold.trusts([0.0, 0.0, 0.0], places).tolist() == [True, False, True]
    assert threshold.holds
    assert groups.name(0) == "site a, device x"


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6).filter(lambda sizes: max(sizes) >= 200), st.integers(0, 5))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_groups_are_found_without_the_labels_and_survive_json(sizes: list[int], seed: int) -> None:
    names = [str(place) for place, size in enumerate(sizes) for _ in range(size)]
    random = np.random.default_rng(seed)
    suspicion, wrong = random.random(len(names)), random.random(len(names)) < 0.02
    one, other = (
        group_thresholds(suspicion, errors, {"site": names}, max_risk=0.1) for errors in (wrong, np.zeros(len(names)))
    )
    assert one.groups == other.groups
    for column, values in one.groups.members():
        least = math.log(0.05 / (len(one.groups.cells) + 1)) / math.log(0.9)
        assert names.count(values) >= MARGIN * least
        assert column == "site"
    assert Threshold.from_json(Record(json.loads(json.dumps(one.as_json())), "x")) == one


def test_chances_weigh_and_thin_as_for_one_threshold() -> None:
    suspicion, wrong, names = sample({"a": 6000})
    chance = np.where(suspicion < 0.5, 0.5, 1.0)
    drawn = np.random.default_rng(5).random(len(names)) < chance
    found = group_thresholds(
        suspicion[drawn], wrong[drawn], {"site": ["a"] * drawn.sum()}, max_risk=0.05, chance=chance[drawn]
    )
    alone = risk_threshold(suspicion[drawn], wrong[drawn], max_risk=0.05, chance=chance[drawn])
    assert found.values[0] == alone.value
    assert found.classes[0].coverage == pytest.approx(alone.coverage)


def test_results_by_group_count_each_group_and_say_which_are_guaranteed() -> None:
    suspicion, wrong, names = sample({"a": 3000, "b": 30})
    threshold = group_thresholds(suspicion, wrong, {"site": names}, max_risk=0.1)
    trusted = threshold.trusts(suspicion, threshold.groups.places({"site": names}))
    first, second = results_by_group(threshold, {"site": names}, trusted, wrong)
    inside = np.array(names) == "a"
    assert (first.value, first.samples, first.guaranteed) == ("a", 3000, True)
    assert first.coverage == trusted[inside].mean()
    assert first.risk == wrong[inside & trusted].mean()
    assert first.accuracy == pytest.approx(1 - wrong[inside].mean())
    assert (second.value, second.samples, second.guaranteed) == ("b", 30, False)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "got none"),
        ({"site": ["a"] * 9}, "got 9"),
        ({"site": ["a", "b", "c", "d"] * 25}, "at least"),
        ({"site": [None] * 100}, "got at most 0"),
    ],
)
def test_groups_without_data_are_refused(values: dict[str, list[object]], told: str) -> None:
    with pytest.raises(ArgumentError, match=r"^group_columns: ") as caught:
        group_thresholds(np.linspace(0, 1, 100), np.zeros(100), values, max_risk=0.1)
    assert told in str(caught.value)


def test_crossed_groups_without_a_combination_with_data_enough_are_refused() -> None:
    sites, devices = np.divmod(np.arange(900), 30)
    values = {"site": (sites % 10).tolist(), "device": (devices % 10).tolist()}
    with pytest.raises(ArgumentError, match=r"^group_columns: .*combination"):
        group_thresholds(RANDOM.random(900), np.zeros(900), values, max_risk=0.1)


def test_a_column_that_is_absent_is_named() -> None:
    groups = Groups(("site",), (("a",),), ((),))
    with pytest.raises(ArgumentError, match="'site'"):
        groups.places({"device": ["a"]})


@pytest.mark.parametrize(
    "content",
    [
        {"columns": [], "cells": [], "rare": []},
        {"columns": ["site"], "cells": [["a", "b"]], "rare": [[]]},
        {"columns": ["site"], "cells": [[1]], "rare": [[]]},
        {"columns": ["site"], "cells": ["a"], "rare": [[]]},
        {"columns": ["site"], "cells": [["a"]], "rare": [[None]]},
        {"columns": ["site"], "cells": [["a"]], "rare": []},
    ],
)
def test_damaged_groups_are_refused(content: dict[str, object]) -> None:
    with pytest.raises(BundleError):
        Groups.from_json(Record(content, "x"))
