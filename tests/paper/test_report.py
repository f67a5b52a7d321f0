import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from example_result import differences, example
from html_page import Page
from petm._internal.files import plain
from petm.adapter.weight_drift import LayerDrift
from petm.errors import RunError
from petm.grading.grader import Grader
from petm.grading.provenance import ModelOrigin, Origin
from petm.paper.analysis import FeatureMap, FilterPCA, paper_figure
from petm.paper.report import summary, write_report
from petm.paper.reproduction import Reproduction
from petm.report.figures import (
    alpha_figure,
    drift_figure,
    reliability_figure,
    risk_coverage_figure,
    save_figure,
)
from petm.report.gallery import Suspect
from petm.selective.curves import Judgement, judge, risk_coverage

SVG = "data:image/svg+xml;base64,"


def drawings(page: Page) -> list[dict[str, str]]:
    """The attributes of the figures."""
    return [image for image in page.all("img") if image["src"].startswith(SVG)]


def photographs(page: Page) -> list[dict[str, str]]:
    """The attributes of the samples' images."""
    return [image for image in page.all("img") if not image["src"].startswith(SVG)]


def judged() -> Judgement:
    """1,000 predictions of which a tenth are wrong, half of the errors above all else."""
    wrong = np.arange(1000) % 10 == 0
    suspicion = np.arange(1000) / 1000 + (np.arange(1000) % 20 == 0)
    return judge(suspicion, -suspicion, wrong, suspicion < 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with figures of the real kind."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("run")
    filters = FilterPCA(
        random.normal(size=(8, 2)), random.normal(size=(8, 2)), np.array([0.5, 0.2]), np.full(4, 0.25), np.full(4, 0.25)
    )
    features = FeatureMap("conv1", random.normal(size=(9, 2)), random.normal(size=(9, 2)), 0.1, 0.0, 0.9)
    figures = {
        "figure1": paper_figure(filters, filters, features),
        "drift": drift_figure([LayerDrift("fc1", 0.5, 2, 4, (1.0, 0.5, 0.1, 0.0))]),
        "alpha": alpha_figure([0, 1], [1, 0.9], [0.9, 1]),
        "reliability": reliability_figure(judged().bins),
        "risk_coverage": risk_coverage_figure({"one": risk_coverage([0, 1], [False, True])}, judged(), "chosen"),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / "figures", name)
    return folder


def suspect(name: str, channels: int, label: int, base: list[float], second: list[float]) -> Suspect:
    image = torch.arange(channels * 6).reshape(channels, 2, 3) / (channels * 6 - 1)
    return Suspect(name, image, "", label, torch.tensor(base).double(), torch.tensor(second).double(), 0.625)


def reproduction(
    folder: Path, *, suspects: Sequence[Suspect] = (), classes: Sequence[str] = (), judgement: Judgement | None = None
) -> Reproduction:
    grader: Grader = SimpleNamespace(origin=Origin(ModelOrigin(classes=tuple(classes))))  # type: ignore[assignment]
    result = example() | {"judgement": plain(judgement or judged())}
    return Reproduction(result, tuple(suspects), grader, folder)


@pytest.fixture(scope="module")
def html(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    suspects = (
        suspect("a/<img src=x>.png", 1, 0, [0.25, 0.75, 0.0], [0.9, 0.1, 0.0]),
        suspect("17", 3, 2, [0.0, 0.125, 0.875], [0.0, 0.5625, 0.4375]),
    )
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(reproduction(folder, suspects=suspects, classes=("<b>bee</b>", "cat & dog", "é")), path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_whole_and_says_its_language(html: str, page: Page) -> None:
    assert html.startswith("<!DOCTYPE html>\n")
    assert html.endswith("</html>\n")
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("title", "h1", "main")] == [1, 1, 1]


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(html: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,", SVG))
    assert "http" not in html
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_every_identifier_is_used_once_and_every_reference_arrives(html: str, page: Page) -> None:
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {attributes["href"][1:] for _, attributes in page.tags if "href" in attributes}
    targets |= set(re.findall(r"url\(#([^)]+)\)", html))
    targets |= {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert targets <= set(identifiers)


def test_every_figure_is_in_the_page_and_is_named(page: Page) -> None:
    assert len(drawings(page)) == 5
    for attributes in drawings(page):
        assert len(attributes["alt"]) > 40
        assert b"<svg" in base64.b64decode(attributes["src"].removeprefix(SVG))
    assert "Figure 1. In the paper the teacher's conv1 filters" in page.text
    assert "hold 50.0% of the variance of the model's conv1 filters and 75.0% of the teacher's" in page.text
    assert "does not separate the model from the teacher (silhouette 0.04)" in page.text


def test_every_table_names_its_rows_and_columns(page: Page) -> None:
    assert len(page.all("table")) == 11
    assert all(cell["scope"] in {"row", "col"} for cell in page.all("th"))
    for text in ("LoRA-PETM in the paper", "88.4%", "50.0% (12.3–98.8)", "75.0% of PETM", "20 of 40"):
        assert text in page.text
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", page.text)


def test_the_curves_are_told_in_words_and_tables(page: Page) -> None:
    # Trusted are 950, of which 50 are wrong: 5.26 %, whose Wilson interval is (0.04014, 0.06871).
    assert "The diamond is the paper's flag: it trusts 95.0%, and of these 5.3% (4.0–6.9) are wrong." in page.text
    assert "each probability is that of a curve fitted on the other folds of a cross-validation" in page.text
    # Half are 500: of the least suspect 26 are wrong, of the most suspect the 50 on top and 24 of the other 450.
    assert "Coverage LoRA-PETM the model's softmax 50% 5.20% 14.80% 60%" in page.text
    labels = [attributes["alt"] for attributes in drawings(page)]
    assert any(label.startswith("Scatter plot of the observed share of errors") for label in labels)
    assert any(label.startswith("Line chart of risk over coverage") for label in labels)


def test_without_enough_errors_there_is_no_reliability_diagram(folder: Path, tmp_path: Path) -> None:
    wrong = np.arange(100) == 0
    one = judge(np.arange(100), np.arange(100), wrong, np.zeros(100, bool))
    write_report(reproduction(folder, judgement=one), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "the probability of error cannot be cross-validated, and there is no reliability diagram" in page.text
    assert "There is no diamond, because the paper's flag trusts nothing." in page.text
    assert len(drawings(page)) == 4


def test_large_images_are_made_smaller(folder: Path, tmp_path: Path) -> None:
    large = Suspect("0", torch.zeros(3, 400, 800), "", 0, torch.ones(2) / 2, torch.ones(2) / 2, 0.0)
    write_report(reproduction(folder, suspects=[large]), tmp_path / "report.html")
    (image,) = photographs(Page((tmp_path / "report.html").read_text(encoding="utf-8")))
    assert Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).size == (168, 84)


def test_names_from_the_data_are_text_and_never_markup(html: str, page: Page) -> None:
    assert "<b>bee</b>" in page.text
    assert "<b>bee</b>" not in html
    assert "Image a/<img src=x>.png" in page.text
    assert len(photographs(page)) == 2


def test_the_gallery_shows_both_opinions_and_who_is_wrong(html: str, page: Page) -> None:
    assert "The base model is wrong on 1 of these 2." in page.text
    first, second = (Page(item).text for item in re.findall(r"<li>.*?</li>", html, re.DOTALL))
    assert first.startswith("The model is wrong True class <b>bee</b> Image a/<img src=x>.png Suspicion 0.62")
    assert "The model says cat & dog 75.0% The second opinion says <b>bee</b> 90.0%" in first
    assert second.startswith("The model is right True class é Image 17")
    assert "The model says é 87.5% The second opinion says cat & dog 56.2%" in second
    labels = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "bars"]
    assert labels[1].endswith("<b>bee</b> 0.0 and 0.0; cat & dog 12.5 and 56.2; é 87.5 and 43.8")


def test_the_images_are_the_samples_pixel_by_pixel(page: Page) -> None:
    grey, colour = (
        Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2])))
        for attributes in photographs(page)
    )
    assert (grey.mode, colour.mode) == ("L", "RGB")
    np.testing.assert_array_equal(np.asarray(grey), [[0, 51, 102], [153, 204, 255]])
    np.testing.assert_array_equal(np.asarray(colour)[0, 1], [15, 105, 195])
    assert all(attributes["alt"].startswith("Test image ") for attributes in photographs(page))


def test_normalised_images_are_stretched_and_a_flat_one_is_drawn(folder: Path, tmp_path: Path) -> None:
    normalised = Suspect("0", torch.tensor([[[-2.0, 0.0, 3.0]]]), "", 0, torch.ones(2) / 2, torch.ones(2) / 2, 0.0)
    flat = Suspect("1", torch.full((2, 1, 1), -1.0), "", 0, torch.ones(2) / 2, torch.ones(2) / 2, 0.0)
    write_report(reproduction(folder, suspects=(normalised, flat)), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))))
        for attributes in photographs(page)
    )
    np.testing.assert_array_equal(first, [[0, 102, 255]])
    np.testing.assert_array_equal(second, [[0]])


def test_of_many_classes_the_likeliest_are_drawn_in_their_order(folder: Path, tmp_path: Path) -> None:
    likely = [*range(0, 30, 3)]
    probabilities = torch.zeros(30).double()
    probabilities[likely] = 0.1
    shown = Suspect("0", torch.zeros(1, 2, 2), "", 0, probabilities, probabilities, 0.0)
    write_report(reproduction(folder, suspects=[shown]), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    (label,) = (attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "bars")
    assert [int(part.split()[0]) for part in label.partition(": ")[2].split("; ")] == likely


def test_a_report_without_suspects_says_so(folder: Path, tmp_path: Path) -> None:
    write_report(reproduction(folder), tmp_path / "report.html")
    assert "No test image was kept." in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_a_missing_or_damaged_figure_is_named_and_no_report_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(RunError, match=r"alpha\.svg: expected a figure of the run, got .* Run the reproduction again"):
        write_report(reproduction(tmp_path), path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "alpha.svg").write_text("<svg>")
    with pytest.raises(RunError, match=r"alpha\.svg: expected a figure of the run"):
        write_report(reproduction(tmp_path), path)
    assert not path.exists()


def test_the_summary_says_what_was_found_and_at_what_cost() -> None:
    told = summary(example())
    assert told.startswith(
        "The model answers 96.0% of 1,000 test images right and is wrong on 40; 1 error on its training data "
        "made the error set of the teacher. LoRA-PETM, an adapter of 500 parameters (50.0% of the teacher), "
        "flags 40 answers and finds "
        "20 of the 40 errors: recall 50.0%, precision 50.0%. A small adapter (2.0% of the teacher) finds 10 with "
        "16 flags. "
        "Against the model's own softmax, which finds 0 with 0 flags, LoRA-PETM is better in recall, precision "
        "and AUROC. "
    )
    assert (
        "which finds 20 with 44 flags, there is no clear difference in recall, precision or AUROC: as far as 40 errors "
        "can tell, further training alone does as much." in told
    )
    assert told.endswith("LoRA-PETM is better in precision and worse in recall, with no clear difference in AUROC.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"auroc": "better"}, "better in AUROC, with no clear difference in recall and precision: the adversarial"),
        ({"recall": "worse"}, "worse in recall, with no clear difference in precision and AUROC: further training alone"
         " does more."),
        (dict.fromkeys(("recall", "precision", "auroc"), "missing"), "there is nothing to compare."),
        ({"auroc": "missing"}, "no clear difference in recall or precision: as far as 40 errors can tell"),
    ],
)  # fmt: skip
def test_the_summary_weighs_the_control_by_intervals(words: dict[str, str], said: str) -> None:
    result = example()
    result["differences"]["petm_control"] = differences()
    result["differences"]["control"] = {
        measure: {end: None if value != value else value for end, value in difference.items()}
        for measure, difference in differences(**words).items()
    }
    assert said in summary(result)


def test_the_summary_of_a_perfect_model_says_that_there_is_nothing_to_find() -> None:
    result = example()
    result["base"] |= {"test_errors": 0, "test_accuracy": 1.0}
    result["detection"]["lora_petm"] |= {"errors": 0, "caught": 0, "recall": None, "precision": 0.0}
    told = summary(result)
    assert "recall –" in told
    assert told.endswith("so there is nothing to find.")
