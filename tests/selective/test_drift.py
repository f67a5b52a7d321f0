"""Drift of suspicion: the statistic against SciPy's, and by simulation how often it alarms with and without drift."""

import numpy as np
import pytest
from scipy.stats import binom, chi2_contingency, ks_2samp

from petm.errors import ArgumentError
from petm.selective.drift import RESOLUTION, SuspicionProfile, alike, differences_of, drift_of, suspicion_profile


def profile_of(suspicion):
    return SuspicionProfile.from_measured(suspicion_profile(suspicion))


def draw(kind, count, generator, shift=0.0):
    """Suspicion as graders give it: small for most, up to 1; of few values; nearly all 0."""
    values = 1 / (1 + np.exp(-generator.normal(-4 + shift, 2, count)))
    return {"continuous": values, "rounded": values.round(2), "mostly_zero": np.where(values < 0.2, 0.0, 1.0)}[kind]


def test_a_profile_is_21_samples_and_how_many_lie_up_to_each():
    values = np.random.default_rng(0).random(200)
    profile = suspicion_profile(np.concatenate([values, [0.5] * 100]))
    ordered = np.sort(np.concatenate([values, [0.5] * 100]))
    assert len(profile["suspicion_quantiles"]) == len(profile["suspicion_ranks"]) == 21
    assert profile["suspicion_quantiles"][0] == ordered[0]
    assert profile["suspicion_quantiles"][-1] == ordered[-1]
    for share, value, rank in zip(
        np.linspace(0, 1, 21), profile["suspicion_quantiles"], profile["suspicion_ranks"], strict=True
    ):
        assert rank == (ordered <= value).sum() >= share * 300
        assert (ordered < value).sum() <= share * 300
    assert profile["suspicion_quantiles"].count(0.5) >= 6, "a third of the samples is tied"


def test_ties_make_one_edge_of_several_quantiles():
    profile = profile_of([0.0] * 90 + [1.0] * 10)
    assert profile.edges.tolist() == [0.0, 1.0 + RESOLUTION]
    assert profile.ranks.tolist() == [90, 100]
    assert profile.samples == 100
    assert profile.counts([0.0, 0.0, 0.5, 1.0, 2.0]).tolist() == [2, 2, 1]


def test_the_last_digits_make_no_difference():
    """The same image in another batch, or by onnxruntime, is as suspect, but not to the bit."""
    calibration = np.repeat([0.001, 0.2, 0.7], 100)
    other = calibration * (1 + np.tile([-1e-6, 1e-6], 150))
    drift = drift_of(profile_of(calibration), profile_of(calibration).counts(other))
    assert (drift.distance, drift.p_value) == (0, 1)


def test_a_bundle_without_a_profile_has_none():
    assert SuspicionProfile.from_measured({"calibration_samples": 300}) is None
    assert SuspicionProfile.from_measured({"suspicion_quantiles": [0.0, 1.0]}) is None


@pytest.mark.parametrize("kind", ["continuous", "rounded", "mostly_zero"])
def test_the_statistic_is_that_of_two_distribution_functions(kind):
    generator = np.random.default_rng(1)
    calibration, production = draw(kind, 700, generator), draw(kind, 450, generator, 0.4)
    profile = profile_of(calibration)
    quantiles = np.unique(suspicion_profile(calibration)["suspicion_quantiles"])
    by_hand = [(production <= edge).mean() - (calibration <= edge).mean() for edge in quantiles]
    np.testing.assert_allclose(differences_of(profile, profile.counts(production)), by_hand, atol=1e-12)
    drift = drift_of(profile, profile.counts(production))
    assert drift.distance == pytest.approx(max(map(abs, by_hand)))
    assert drift.at == pytest.approx(quantiles[np.abs(by_hand).argmax()], rel=1e-4)
    assert drift.more_suspect
    assert (drift.samples, drift.calibration_samples) == (450, 700)
    whole = ks_2samp(calibration, production)
    assert whole.statistic - 0.05 <= drift.distance <= whole.statistic + 1e-12


def test_the_p_value_is_that_of_two_samples_of_one_distribution():
    """Against samples that are drawn, cut at their own quantiles and compared, without any theory of spacings."""
    generator = np.random.default_rng(2)
    reference = []
    for _ in range(2000):
        profile = profile_of(generator.random(60))
        reference.append(abs(differences_of(profile, profile.counts(generator.random(90)))).max())
    profile = profile_of(generator.random(60))
    for shift in (0.02, 0.1, 0.2):
        drift = drift_of(profile, profile.counts(np.clip(generator.random(90) + shift, 0, 1)))
        expected = float((np.array(reference) >= drift.distance - 1e-12).mean())
        assert drift.p_value == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 2000))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["continuous", "rounded", "mostly_zero"])
@pytest.mark.parametrize(("calibration", "production"), [(100, 100), (1000, 50), (300, 20_000)])
def test_size_without_drift(kind, calibration, production, monkeypatch):
    """Alarms at 5 % are at most 5 % of 300, within what chance allows; for a continuous suspicion not far fewer."""
    monkeypatch.setattr("petm.selective.drift.DRAWS", 999)
    generator = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        profile = profile_of(draw(kind, calibration, generator))
        alarms += drift_of(profile, profile.counts(draw(kind, production, generator))).p_value <= 0.05
    assert alarms <= binom.isf(0.001, 300, 0.05)
    if kind == "continuous":
        assert alarms >= binom.ppf(0.001, 300, 0.03)


def test_power_with_drift(monkeypatch):
    """A shift of half a standard deviation, 300 against 300: seen as often as by SciPy's test on all values, nearly."""
    monkeypatch.setattr("petm.selective.drift.DRAWS", 999)
    generator = np.random.default_rng(4)
    seen, by_all = 0, 0
    for _ in range(200):
        calibration, production = draw("continuous", 300, generator), draw("continuous", 300, generator, 1.0)
        profile = profile_of(calibration)
        drift = drift_of(profile, profile.counts(production))
        seen += drift.p_value <= 0.01 and drift.more_suspect
        by_all += ks_2samp(calibration, production).pvalue <= 0.01
    assert seen >= 0.9 * 200
    assert seen >= by_all - 10


def test_counts_of_another_profile():
    profile = profile_of(np.arange(100.0))
    with pytest.raises(ArgumentError, match=r"^counts:"):
        drift_of(profile, [1, 2, 3])
    with pytest.raises(ArgumentError, match=r"^counts:"):
        drift_of(profile, np.zeros(22))


# two histograms


def test_histograms_with_enough_in_each_bin_are_compared_as_they_are():
    table = np.array([[50, 60, 40], [110, 100, 95]])
    assert alike(*table) == pytest.approx(chi2_contingency(table).pvalue)


def test_thin_bins_are_merged():
    """Of the smaller row one tenth of each column is expected: 4.5, 5, 0.5 and 5 make 9.5 and 5.5."""
    first, second = [9, 0, 1, 5], [36, 50, 4, 45]
    merged = np.array([[9, 6], [86, 49]])
    assert merged.sum() == sum(first) + sum(second)
    assert alike(first, second) == pytest.approx(chi2_contingency(merged, correction=False).pvalue)


def test_too_few_to_compare():
    assert alike([0, 0], [30, 30]) is None
    assert alike([2, 2], [30, 30]) is None
