import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from petm.adapter.weight_drift import LayerDrift
from petm.errors import RunError
from petm.report.figures import (
    BASE_COLOUR,
    TEACHER_COLOUR,
    alpha_figure,
    drift_figure,
    reliability_figure,
    risk_coverage_figure,
    save_figure,
    svg_of,
)
from petm.selective.curves import Bin, Judgement, RiskCurve
from petm.selective.metrics import share


def texts(figure: Figure) -> str:
    """All that can be read on a figure."""
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_the_alpha_figure_draws_both_lines() -> None:
    alphas, to_base, to_teacher = [0, 0.5, 1], [1, 0.99, 0.97], [0.97, 0.98, 0.995]
    figure = alpha_figure(alphas, to_base, to_teacher)
    base, teacher = figure.axes[0].lines
    np.testing.assert_array_equal(base.get_xydata(), np.column_stack((alphas, to_base)))
    np.testing.assert_array_equal(teacher.get_xydata(), np.column_stack((alphas, to_teacher)))
    assert "to the model" in texts(figure)
    assert "to the teacher" in texts(figure)


def test_the_drift_figure_draws_a_bar_a_layer_from_the_top() -> None:
    drift = [
        LayerDrift("conv1", 0.22, 2, 9, ()),
        LayerDrift("fc1", 0.83, 48, 128, ()),
        LayerDrift("fc2", 0.0, 0, 10, ()),
        LayerDrift("gate", math.inf, 3, 4, ()),
    ]
    figure = drift_figure(drift)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.22, 0.83, 0, 0]
    shown = texts(figure)
    for part in ("conv1", "rank 2 of 9", "rank 48 of 128", "no drift", "rank 3 of 4, W₀ = 0"):
        assert part in shown
    top, bottom = (axes.transData.transform((0, position))[1] for position in (0, 3))
    assert top > bottom
    labels = [label.get_window_extent() for label in axes.texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in labels), "a label runs out of the figure"


@pytest.mark.parametrize("drift", [[], [LayerDrift("a", 0.0, 0, 2, (0.0, 0.0))]], ids=["no layers", "no drift"])
def test_the_drift_figure_without_drift(drift: list[LayerDrift], tmp_path: Path) -> None:
    save_figure(drift_figure(drift), tmp_path, "drift")


def test_the_reliability_figure_draws_each_bin_with_its_interval() -> None:
    bins = [Bin(0.004, share(0, 90)), Bin(0.09, share(10, 90)), Bin(0.25, share(30, 90))]
    figure = reliability_figure(bins)
    (axes,) = figure.axes
    diagonal, observed = axes.lines
    np.testing.assert_allclose(observed.get_xydata(), [(0.004, 0), (0.09, 1 / 9), (0.25, 1 / 3)])
    (intervals,) = axes.collections
    for segment, part in zip(intervals.get_segments(), bins, strict=True):
        np.testing.assert_allclose(
            segment, [(part.predicted, part.observed.low), (part.predicted, part.observed.high)], atol=1e-12
        )
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[1] > share(30, 90).high
    shown = texts(figure)
    for part in ("as predicted", "95% interval", "observed", "predicted probability of error", "5%"):
        assert part in shown
    quarter, whole = (axes.transData.transform((x, 0))[0] - axes.transData.transform((0, 0))[0] for x in (0.0625, 0.25))
    assert whole == pytest.approx(2 * quarter), "a square-root scale"


def lines() -> dict[str, RiskCurve]:
    coverage = np.array([0.05, 0.5, 1.0])
    return {
        "Grader": RiskCurve(coverage, np.array([1.0, 0.02, 0.1])),
        "the model's softmax": RiskCurve(coverage, np.array([0.0, 0.05, 0.1])),
    }


def test_the_risk_figure_draws_both_curves_and_marks_the_chosen_point() -> None:
    figure = risk_coverage_figure(lines(), Judgement((), math.nan, 0.75, share(3, 60), ()), "the flag")
    (axes,) = figure.axes
    grader, softmax, chosen = axes.lines
    for drawn, line in zip((grader, softmax), lines().values(), strict=True):
        np.testing.assert_array_equal(drawn.get_xydata(), np.column_stack(line))
    assert (grader.get_color(), softmax.get_color()) == (TEACHER_COLOUR, BASE_COLOUR)
    assert grader.get_linestyle() != softmax.get_linestyle()
    np.testing.assert_allclose(chosen.get_xydata(), [(0.75, 0.05)])
    assert axes.get_ylim() == pytest.approx((0, 0.11)), "one error among the first few does not flatten the rest"
    shown = texts(figure)
    for part in ("Grader", "the model's softmax", "the flag", "coverage", "risk"):
        assert part in shown


def test_the_risk_figure_marks_nothing_where_nothing_is_trusted() -> None:
    figure = risk_coverage_figure(lines(), Judgement((), math.nan, 0.0, share(0, 0), ()), "the flag")
    assert len(figure.axes[0].lines) == 2
    assert "the flag" not in texts(figure)


def test_the_risk_figure_without_an_error(tmp_path: Path) -> None:
    flat = {"Grader": RiskCurve(np.array([1.0]), np.array([0.0]))}
    figure = risk_coverage_figure(flat, Judgement((), math.nan, 1.0, share(0, 9), ()), "the flag")
    assert figure.axes[0].get_ylim() == (0, 1)
    save_figure(figure, tmp_path, "risk_coverage")


def test_an_svg_in_memory_is_that_of_the_file(tmp_path: Path) -> None:
    text = svg_of(alpha_figure([0, 1], [1, 0.9], [0.9, 1]), "alpha")
    _, svg = save_figure(alpha_figure([0, 1], [1, 0.9], [0.9, 1]), tmp_path, "alpha")
    assert svg.read_text(encoding="utf-8") == text


def settings() -> dict[str, object]:
    """matplotlib's global settings, but for the backend, which is chosen when it is asked for."""
    return {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}


def test_a_saved_figure_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    before = settings()
    contents = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        figure = alpha_figure([0, 1], [1, 0.9], [0.9, 1])
        png, svg = save_figure(figure, folder, "figure_1")
        assert sorted(folder.iterdir()) == [png, svg] == [folder / "figure_1.png", folder / "figure_1.svg"]
        assert not figure.axes
        contents.append((png.read_bytes(), svg.read_bytes()))
    assert contents[0] == contents[1]
    png_bytes, svg_bytes = contents[0]
    assert png_bytes.startswith(b"\x89PNG")
    assert int.from_bytes(png_bytes[16:20]) == 6.4 * 150
    assert b"<svg" in svg_bytes
    assert b"<dc:date>" not in svg_bytes
    assert settings() == before


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"figure_1\.png: could not be written"):
        save_figure(alpha_figure([0, 1], [1, 0.9], [0.9, 1]), tmp_path / "taken", "figure_1")
