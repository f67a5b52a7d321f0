import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score
from torch import nn

from html_page import Page
from networks import randomise
from petm.adapter.model import AdaptedModel, attach_adapter, views_alone
from petm.adapter.one_pass import set_cascade
from petm.cli.fit import fit
from petm.data.base import Data, TensorData
from petm.errors import DataError, RunError
from petm.grading.grader import Grader, fit_grader
from petm.grading.provenance import ModelOrigin, Origin, describe_data
from petm.models.loading import save_weights
from petm.models.scores import maximum_softmax
from petm.report.fit_report import write_fit_report
from petm.report.tables import percent
from petm.selective.choice import Choice, Compared
from petm.selective.metrics import share
from petm.selective.targets import Recall
from petm.selective.thresholds import DISAGREEMENT
from petm.selective.worth import cost_of
from words import forbidden

SVG = "data:image/svg+xml;base64,"


@pytest.fixture(scope="module")
def calibration(digits: tuple[Data, ...]) -> Data:
    return digits[2].subset(range(300)).in_memory()


@pytest.fixture
def adapted(model: nn.Module) -> AdaptedModel:
    return randomise(attach_adapter(model, {"fc1": 4, "fc2": 5}), scale=0.2)


def written(grader: Grader, data: Data, path: Path) -> tuple[str, Page]:
    write_fit_report(grader, data, path)
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def reported(
    _trained: nn.Module, calibration: Data, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Grader, str, Page]:
    """A grader for a recall of 90 %, and its page."""
    adapted = randomise(attach_adapter(copy.deepcopy(_trained), {"fc1": 4, "fc2": 5}), scale=0.2)
    grader = fit_grader(adapted, calibration, target=Recall(0.9))
    return grader, *written(grader, calibration, tmp_path_factory.mktemp("report") / "new" / "page.html")


def drawings(page: Page) -> list[dict[str, str]]:
    """The attributes of the figures."""
    return [image for image in page.all("img") if image["src"].startswith(SVG)]


def photographs(page: Page) -> list[dict[str, str]]:
    """The attributes of the samples' images."""
    return [image for image in page.all("img") if not image["src"].startswith(SVG)]


def row(page: Page, name: str, cells: int) -> list[str]:
    """The texts that follow a row's name, which stands once behind a heading of its table."""
    return page.text.partition(f" {name} ")[2].split()[:cells]


def test_the_page_is_whole_and_loads_nothing(reported: tuple[Grader, str, Page]) -> None:
    _, html, page = reported
    assert html.startswith("<!DOCTYPE html>\n")
    assert html.endswith("</html>\n")
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("title", "h1", "main")] == [1, 1, 1]
    assert "http" not in html
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,", SVG))
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {attributes["href"][1:] for _, attributes in page.tags if "href" in attributes}
    assert targets | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(identifiers)
    assert len(drawings(page)) == 2
    assert all(len(drawing["alt"]) > 40 for drawing in drawings(page))
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", page.text)


def test_the_figures_are_those_of_the_samples(reported: tuple[Grader, str, Page], calibration: Data) -> None:
    grader, _, page = reported
    grades = grader.grade(calibration)
    wrong = grades.labels != calibration.labels.numpy()
    flagged = ~grades.trusted
    errors, caught = int(wrong.sum()), int((wrong & flagged).sum())
    assert 0 < caught < flagged.sum()
    assert cost_of(grader.measured)[0] in page.text
    for name, count, of in (
        ("Error rate of the model", errors, 300),
        ("Coverage", 300 - int(flagged.sum()), 300),
        ("Error rate of the trusted", errors - caught, int(grades.trusted.sum())),
        ("Recall", caught, errors),
        ("Precision", caught, int(flagged.sum())),
    ):
        found = share(count, of)
        told = f"{name} {percent(found.value)} ({percent(found.low)[:-1]}–{percent(found.high)[:-1]}) {count} of {of}"
        assert told in page.text
    assert f"is wrong on {errors}. The grader flags {flagged.sum()} of the answers and finds {caught}" in page.text


def test_the_order_stands_beside_the_softmax(reported: tuple[Grader, str, Page], calibration: Data) -> None:
    grader, _, page = reported
    grades = grader.grade(calibration)
    wrong = grades.labels != calibration.labels.numpy()
    with torch.no_grad():
        softmax = maximum_softmax(grader.adapted.base(calibration.inputs(range(300)))).numpy()
    ours, theirs = roc_auc_score(wrong, grades.suspicion), roc_auc_score(wrong, softmax)
    told = row(page, "The grader is AUROC", 6)
    assert told[:2] == [percent(ours, 2), percent(theirs, 2)]
    value, low, high = (float(text.replace("−", "-")) for text in (told[2], told[3], told[5]))
    assert value == pytest.approx(100 * (ours - theirs), abs=0.006)
    assert low < value < high


@pytest.mark.parametrize(("better", "word"), [(True, "better"), (False, "worse")])
def test_a_lower_aurc_is_better(
    better: bool, word: str, adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    data = digits[2].subset(range(300)).in_memory()
    with torch.no_grad():
        x = data.inputs(range(300))
        base, second = adapted(x, alpha=0.0), adapted(x)
    if better:  # the model is wrong exactly where the second opinion contradicts it
        labels = second.argmax(1)
    else:  # the model is wrong exactly where it is least certain
        labels, unsure = base.argmax(1), maximum_softmax(base).argsort(descending=True)[:60]
        labels[unsure] = base[unsure].topk(2).indices[:, 1]
    _, page = written(Grader(adapted, DISAGREEMENT), TensorData(x, labels), tmp_path / "page.html")
    told = page.text.partition("AURC ")[2].partition("Without any threshold")[0]
    assert told.split()[-1] == word


def test_the_most_suspect_samples_are_shown(reported: tuple[Grader, str, Page], calibration: Data) -> None:
    grader, html, page = reported
    grades = grader.grade(calibration)
    order = np.argsort(-grades.suspicion, kind="stable")[:12]
    shown = html.partition('<section id="samples">')[2]
    items = [Page(item).text for item in re.findall(r"<li>.*?</li>", shown, re.DOTALL)]
    assert len(items) == len(photographs(Page(shown.partition("</section>")[0]))) == 12
    for index, item in zip(order, items, strict=True):
        label, answer = int(calibration.labels[index]), grades.labels[index]
        assert item.startswith(
            f"The model is {'right' if label == answer else 'wrong'} "
            f"True class {label} Image {calibration.name(index)} "
            f"Probability of error {percent(grades.probability_of_error[index])} The model says {answer} "
        )
        assert f"The second opinion says {grades.second[index]} " in item
    assert all(image["alt"].startswith("Calibration image ") for image in photographs(page))


def test_it_shows_where_the_second_opinion_disagrees_and_was_right(
    reported: tuple[Grader, str, Page], calibration: Data, model: nn.Module, tmp_path: Path
) -> None:
    grader, html, page = reported
    grades, labels = grader.grade(calibration), calibration.labels.numpy()
    differ = grades.second != grades.labels
    right = np.flatnonzero(differ & (grades.second == labels))
    assert len(right) > 1
    spoilt = int((differ & (grades.labels == labels)).sum())
    assert f"another class than the model for {differ.sum()} of these samples" in page.text
    assert f"right {len(right)} times, the model {spoilt} times" in page.text
    shown = html.partition('<section id="disagrees">')[2].partition("</section>")[0]
    most = right[np.argsort(-grades.suspicion[right], kind="stable")][:6]
    assert re.findall(r"Image (\d+)", Page(shown).text) == [calibration.name(index) for index in most]
    alone = fit_grader(attach_adapter(model, {"fc2": 1}), calibration, target=Recall(0.9))
    html, _ = written(alone, calibration, tmp_path / "alone.html")  # a fresh adapter changes nothing
    assert 'id="disagrees"' not in html


def test_without_a_second_opinion_it_shows_none(model: nn.Module, calibration: Data, tmp_path: Path) -> None:
    grader = fit_grader(views_alone(model, ()), calibration, target=Recall(0.9), score="softmax")
    html, page = written(grader, calibration, tmp_path / "alone.html")
    assert not re.search("second opinion", page.text, re.IGNORECASE)
    assert (html.count('class="key base"'), html.count('class="key second"')) == (12, 0)
    answers = grader.grade(calibration)
    most = int(answers.suspicion.argmax())
    with torch.no_grad():
        probability = float(model(calibration.inputs([most])).double().softmax(1).max())
    assert f"The model says {answers.labels[most]} {percent(probability)}" in page.text
    assert "Adapter none" in page.text


def test_it_shows_what_was_compared_and_what_it_brings(
    adapted: AdaptedModel, calibration: Data, tmp_path: Path
) -> None:
    rows = (
        Compared("softmax", 0.0, 0.02, 0.0, 0.0, better=False, taken=False),
        Compared("mean with the adapter", 0.25, 0.01, -0.015, -0.005, better=True, taken=True),
        Compared("margin", 0.0, 0.03, 0.001, 0.02, better=False, taken=False),
    )
    choice = Choice("mean with the adapter", "aurc", rows, "It beats the softmax.")
    grader = fit_grader(adapted, calibration, target=Recall(0.9), choice=choice)
    assert grader.outcome is not None
    _, page = written(grader, calibration, tmp_path / "page.html")
    assert "It beats the softmax." in page.text
    assert "mean with the adapter +25.0% 1.000% −1.500 to −0.500 better taken" in page.text
    assert "margin +0.0% 3.000% +0.100 to +2.000 worse" in page.text
    assert all(sentence in page.text for sentence in grader.outcome.sentences)
    row = grader.outcome.trade_off[-1]
    assert f"10% {percent(row.chosen.guaranteed)} ({percent(row.softmax.guaranteed)})" in page.text


def test_what_is_no_image_has_no_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(60, 5)
    labels = network(inputs).argmax(1)
    labels[:20] = (labels[:20] + 1) % 3
    grader = Grader(randomise(attach_adapter(network, {"2": 1})), DISAGREEMENT)
    _, page = written(grader, TensorData(inputs, labels), tmp_path / "page.html")
    assert not photographs(page)
    assert "Probability of error not calibrated" in page.text
    assert re.search(r"Sample \d+ Suspicion -?\d+\.\d\d", page.text)


def test_a_model_without_errors_has_a_page_that_says_so(
    adapted: AdaptedModel, calibration: Data, tmp_path: Path
) -> None:
    inputs = calibration.inputs(range(40))
    with torch.no_grad():
        labels = adapted(inputs, alpha=0.0).argmax(1)
    data = TensorData(inputs, labels)
    _, page = written(fit_grader(adapted, data), data, tmp_path / "page.html")
    assert "cannot be cross-validated, and there is no reliability diagram" in page.text
    assert "is wrong on 0." in page.text
    assert "Recall – 0 of 0" in page.text
    assert len(drawings(page)) == 1
    assert not re.search(r"\b(nan|inf|None)\b", page.text)


@pytest.mark.slow
def test_samples_that_set_no_threshold_are_told_apart(adapted: AdaptedModel, calibration: Data, tmp_path: Path) -> None:
    threshold_set_on = calibration.subset(range(30, 300))
    set_cascade(adapted, calibration.subset(range(30)), 0.5)
    origin = Origin(data={"calibration": describe_data(threshold_set_on)})
    grader = fit_grader(adapted, threshold_set_on, target=Recall(0.9), origin=origin)
    assert "set on 270 of these samples" in written(grader, calibration, tmp_path / "all.html")[1].text
    told = written(fit_grader(adapted, calibration), calibration, tmp_path / "paper.html")[1].text
    assert "The threshold is the paper's flag, which depends on no samples." in told
    assert "set on these samples" in written(grader, threshold_set_on, tmp_path / "used.html")[1].text


@pytest.mark.slow
def test_the_command_writes_the_page_on_what_it_held_out(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = digits[0].subset(range(200)).in_memory()
    np.savez("data.npz", images=data.inputs(range(200)).numpy(), labels=data.labels.numpy())
    save_weights(model, Path("w.safetensors"))
    arguments = ["--model", "networks:TinyCNN", "--weights", "w.safetensors", "--data", "data.npz", "--recipe", "paper"]
    plain = CliRunner().invoke(fit, [*arguments, "--max-extra-parameters", "0.2", "-o", "plain.petm", "--json"])
    told = CliRunner().invoke(
        fit, [*arguments, "--max-extra-parameters", "0.2", "-o", "told.petm", "--json", "--report", "page.html"]
    )
    assert (plain.exit_code, told.exit_code) == (0, 0), plain.output + told.output
    assert "Report: page.html" in told.stderr
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["page.html"]
    held = digits[0].subset(range(200)).split((0.8, 0.2))[1]
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert not forbidden(page.text + told.stderr)
    assert f"{len(held)} calibration samples from data.npz" in page.text
    first, second = json.loads(plain.stdout), json.loads(told.stdout)
    assert first["data"] == second["data"]
    assert first["data"]["calibration"]["samples"] == len(held)
    errors = second["measured"]["calibration_errors"]
    assert f"and is wrong on {errors}." in page.text


def test_a_folder_in_the_pages_place_is_refused_at_once(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        fit, ["--model", "a:b", "--data", "x", "-o", str(tmp_path / "my.petm"), "--report", str(tmp_path)]
    )
    assert told.exit_code == 2
    assert "is a directory" in told.stderr


def test_names_are_text_and_never_markup(adapted: AdaptedModel, calibration: Data, tmp_path: Path) -> None:
    origin = Origin(ModelOrigin("nets.py:<b>build</b>", classes=("<i>nought</i>", *"123456789")))
    html, page = written(fit_grader(adapted, calibration, origin=origin), calibration, tmp_path / "page.html")
    assert "<b>build</b>" not in html
    assert "<i>nought</i>" not in html
    assert page.text.startswith("Second opinion for nets.py:<b>build</b> Second opinion for nets.py: <b>build</b>")


def test_the_same_grader_writes_the_same_page(
    reported: tuple[Grader, str, Page], calibration: Data, tmp_path: Path
) -> None:
    grader, html, _ = reported
    assert written(grader, calibration, tmp_path / "second.html")[0] == html


def test_samples_without_labels_are_refused(adapted: AdaptedModel, calibration: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        write_fit_report(Grader(adapted, DISAGREEMENT), TensorData(calibration.inputs([0, 1])), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written(adapted: AdaptedModel, calibration: Data, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(RunError, match=r"page\.html: could not be written"):
        write_fit_report(fit_grader(adapted, calibration), calibration, tmp_path / "taken" / "page.html")
