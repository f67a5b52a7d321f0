"""The page of the service: its files as they are, and in a browser that drives it as a person would."""

import base64
import copy
import hashlib
import json
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from torch import nn

import hf_folders
from example_result import example
from headless import PATIENCE, at_widths, faults, headless_chromium, in_browser, until
from html_page import Page
from networks import TwelveClasses, randomise, seeded
from petm._internal.files import plain
from petm.adapter.model import attach_adapter, views_alone
from petm.adapter.one_pass import dual_logits, set_cascade
from petm.data.base import Data
from petm.data.reader import Reader
from petm.data.reviewed import read_reviewed
from petm.data.sources import open_sources
from petm.data.texts import Tokenized, read_texts
from petm.grading.grade_files import grade_files
from petm.grading.grade_table import read_grades
from petm.grading.grader import Grader, fit_grader, load
from petm.grading.label_errors import FoundLabelErrors
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_classifier import load_classifier
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer
from petm.models.loading import save_weights
from petm.models.scores import maximum_softmax
from petm.paper.report import write_report
from petm.paper.reproduction import Reproduction
from petm.report.fit_report import write_fit_report
from petm.report.tables import MISSING, percent
from petm.selective.curves import judge
from petm.selective.targets import Coverage, Recall
from petm.serving.app import make_app
from petm.serving.engine import GraderEngine
from petm.serving.limits import Limits
from petm.serving.reading import reader_for
from petm.serving.server import listening
from served import serve_while
from words import forbidden

PAGE = Path(__file__).parents[2] / "src" / "petm" / "serving" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
MARKUP = "<img src=x onerror=alert(1)> & co.png"
"""A file name that would be an image of its own, were it taken as markup."""


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(FILES["index.html"])


@pytest.mark.slow
def test_the_page_is_whole_and_says_its_language(page: Page) -> None:
    assert FILES["index.html"].startswith("<!DOCTYPE html>\n")
    assert FILES["index.html"].endswith("</html>\n")
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("title", "h1", "main")] == [1, 1, 1]
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    named = {
        attributes[name] for _, attributes in page.tags for name in ("for", "aria-labelledby") if name in attributes
    }
    # The heading of what is in review is drawn with it.
    assert named - set(identifiers) == {"case-title"}
    assert 'id: "case-title"' in SCRIPTS["review.js"]


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere_and_nothing_stands_inline(page: Page) -> None:
    assert not {"style", "iframe", "object", "embed", "base", "img"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "data", "srcset", "formaction"):
            assert attributes.get(name, "page.js") in FILES, tag
    (script,) = page.all("script")
    assert script == {"type": "module", "src": "page.js"}
    assert re.search(r"<script[^>]*></script>", FILES["index.html"])
    for name, text in FILES.items():
        assert not re.search(r"https?:|[\"'(]//|@import|url\(", text.replace("http://www.w3.org/2000/svg", "")), name


@pytest.mark.slow
def test_scripts_make_no_markup_of_text_and_import_only_each_other() -> None:
    used = {"page.js"}
    for name, text in SCRIPTS.items():
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc|\"style\""
        assert not re.search(forbidden, text), name
        assert not re.search(r"\bimport\(", text), name
        used |= {found.removeprefix("./") for found in re.findall(r"from \"([^\"]+)\"", text)}
    assert used == set(SCRIPTS)


@pytest.mark.slow
def test_what_scripts_look_for_is_on_the_page(page: Page) -> None:
    identifiers = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    wanted = {found for text in SCRIPTS.values() for found in re.findall(r"byId\(\"([^\"]+)\"\)", text)}
    assert len(wanted) > 40
    assert wanted <= identifiers


@pytest.mark.slow
def test_colours_are_those_of_the_reports() -> None:
    report = (PAGE.parents[1] / "report" / "templates" / "report.css").read_text(encoding="utf-8")

    def palettes(css: str) -> list[str]:
        return re.findall(r"(--page:[^}]+?)\s*\}", css)

    assert len(palettes(report)) == 2
    assert [one.split() for one in palettes(FILES["page.css"])] == [one.split() for one in palettes(report)]


@dataclass(frozen=True)
class Served:
    """A bundle, and what its grader says of ten files of which one is no image."""

    bundle: Path
    images: tuple[Path, ...]
    grader: Grader

    def inputs(self, path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None, None]

    @property
    def readable(self) -> list[Path]:
        return [path for path in self.images if path.name != "broken.png"]

    def suspects(self) -> list[Path]:
        """Most suspect first."""
        found = {path: self.grader.grade(self.inputs(path)) for path in self.readable}
        return sorted((p for p in found if not found[p].trusted[0]), key=lambda p: -found[p].suspicion[0])


@pytest.fixture(scope="module")
def served(_trained: nn.Module, digits: tuple[Data, ...], tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    model = copy.deepcopy(_trained)
    save_weights(model, folder / "w.safetensors")
    origin = Origin(
        ModelOrigin("networks:TinyCNN", {}, str(folder / "w.safetensors"), digits[0].classes), InputOrigin((28, 28), 1)
    )
    adapted = randomise(attach_adapter(model, {"fc1": 4, "fc2": 5}), scale=0.2)
    grader = fit_grader(adapted, digits[1], target=Recall(0.9), origin=origin)
    grader.save(folder / "digits.petm")
    grades = grader.grade(digits[2])
    suspect, trusted = np.flatnonzero(~grades.trusted)[:5], np.flatnonzero(grades.trusted)[:4]
    (folder / "images").mkdir()
    for index in (*suspect, *trusted):
        pixels = (digits[2].inputs([int(index)])[0, 0] * 255).round().byte().numpy()
        name = MARKUP if index == suspect[0] else f"{index:04d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    made = Served(folder / "digits.petm", tuple(sorted((folder / "images").iterdir())), grader)
    assert (len(made.images), len(made.suspects())) == (10, 5)
    return made


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def service(
    bundle: Path, port: int, *, labels: Path | None = None, key: str | None = None, **more: Any
) -> Iterator[str]:
    """Gives the address of a service in a thread: no process has to import PyTorch (`test_process.py` has those)."""
    grader = load(bundle, trust_bundle_code=True)
    inputs = grader.origin.inputs
    processor = load_processor(inputs.processor) if inputs.processor else None
    app, _ = make_app(
        lambda limits: GraderEngine(grader, reader_for(inputs, limits, processor)),
        Limits(),
        labels=labels,
        key=key,
        **more,
    )
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_config=None, lifespan="on"))
    with closing(listening("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        address = f"http://127.0.0.1:{port}/"
        try:
            until(lambda: not thread.is_alive() or answers(address + "readyz"))
            assert thread.is_alive(), "the service has ended"
            yield address
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


class Browser:
    """A page in headless Chromium, by what a person sees of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return until(lambda: self.all(selector), lambda: f"{selector} is not on the page")[0]

    def text(self, selector: str) -> str:
        """The text that is seen there; of an element that was just drawn anew, the new one's."""
        script = (
            "const found = document.querySelector(arguments[0]);return found?.checkVisibility() ? found.innerText : '';"
        )
        return " ".join(self.driver.execute_script(script, selector).split())

    def wait_for(self, selector: str, text: str) -> None:
        until(
            lambda: text in self.text(selector), lambda: f"{selector}: expected {text!r}, got {self.text(selector)!r}"
        )

    def open(self, address: str) -> None:
        """Opens the page, and waits until the service has said what it grades."""
        self.driver.get(address)
        self.wait_for("#about", "The model sorts images into 10 classes.")

    def drop(self, paths: tuple[Path, ...]) -> None:
        """Drops files as a person does, by the browser's own drag and drop."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})

    def decide(self, key: str) -> None:
        """Presses a key with the case in sight: the page decides on nothing out of view."""
        self.driver.execute_script("document.getElementById('case').scrollIntoView({block: 'start'})")
        self.press(key)

    def press(self, *keys: str) -> None:
        """Presses keys wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def faults(self) -> list[str]:
        """What the console says since the last time."""
        return faults(self.driver)


@pytest.fixture(scope="module")
def address(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a service for those who decide nothing."""
    labels = tmp_path_factory.mktemp("shared") / "labels.jsonl"
    with service(served.bundle, free_port(), labels=labels) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Driver of the browser, with a window that stays empty and keeps it running."""
    with headless_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    """A window of its own, so that no script or setting of another test is left, and nothing in storage."""
    first = chromium.current_window_handle
    chromium.get_log("browser")
    chromium.switch_to.new_window("window")
    chromium.set_window_size(1200, 1000)
    yield Browser(chromium)
    visited = {"origin": chromium.execute_script("return location.origin"), "storageTypes": "all"}
    chromium.close()
    chromium.switch_to.window(first)
    chromium.execute_cdp_cmd("Storage.clearDataForOrigin", visited)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@in_browser
@pytest.mark.slow
def test_a_queue_is_reviewed_without_seeing_which_are_suspect(
    browser: Browser, served: Served, digits: tuple[Data, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number, image in enumerate((digits[2].inputs(range(24))[:, 0].numpy() * 255).round().astype(np.uint8)):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:02}.png")
    reader = Reader(size=(28, 28), channels=1)
    archive, labels = tmp_path / "g.parquet", tmp_path / "labels.jsonl"
    grade_files(served.grader, open_sources(["images"]), reader, archive, told={}, audit=0.4)
    rows = {row["sha256"]: row for batch in read_grades(archive) for row in batch.to_pylist()}
    total = sum(row["grade"] == "suspect" or row["audit"] for row in rows.values())
    drawn = sum(row["audit"] for row in rows.values())
    assert drawn > 2
    assert total > drawn + 2
    with service(served.bundle, free_port(), labels=labels, queue=[str(archive)]) as address:
        browser.open(address)
        browser.wait_for("#progress", f"0 of {total} reviewed")
        browser.wait_for("#start-review", "Review the queue")
        browser.one("#start-review").click()
        if folder := os.environ.get("PETM_PICTURES"):
            browser.driver.save_screenshot(f"{folder}/queue.png")
        seen = []
        for place in range(total):
            browser.wait_for("#progress", f"{place} of {total} reviewed")
            assert not re.search("suspect|trusted|suspicion|probability", browser.text("#review"), re.IGNORECASE)
            assert not browser.all("#case table, #case .badge, #candidates .key.second, #candidates .candidate")
            script = "return document.querySelector('#queue [aria-current=step]').dataset.id"
            seen.append(browser.driver.execute_script(script))
            browser.decide("x" if place == 1 else "c")
        browser.wait_for("#progress", f"{total} of {total} reviewed")
        browser.wait_for("#decided", "saved")
        browser.one("#case .badge")
        if folder:
            browser.driver.save_screenshot(f"{folder}/queue-end.png")
        until(lambda: len(lines(labels)) == total)
        browser.open(address)
        browser.wait_for("#told", f"The labels file holds decisions on {total} inputs.")
        assert not browser.all("#queue button")
        assert browser.faults() == []
    told = lines(labels)
    assert [line["sha256"] for line in told] == seen
    assert [line["label"] for line in told] == [None if n == 1 else rows[s]["label"] for n, s in enumerate(seen)]
    assert [line.get("decision") for line in told] == [None, "cannot tell", *[None] * (total - 2)]
    grades = [rows[digest]["grade"] for digest in seen]
    assert grades != sorted(grades)
    assert grades != sorted(grades, reverse=True)
    reviewed = read_reviewed([labels], [archive], tuple("0123456789"), fewest=1)
    reviewed.check_drawn()
    assert (reviewed.by_content, reviewed.unmatched, reviewed.trusted.sum()) == (total, 0, drawn)


@in_browser
@pytest.mark.slow
def test_probably_wrong_labels_are_reviewed_with_both_labels_in_their_order(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    paths, labels, names = served.readable[:3], tmp_path / "labels.jsonl", tuple("0123456789")
    found = FoundLabelErrors(
        np.array([3, 7, 1]),
        np.array([5, 2, 4]),
        np.array([0.2, 0.9, 0.6]),
        np.ones(3, int),
        np.array([1, 2, 0]),
        names,
        [(str(path), None) for path in paths],
    )
    found.save(tmp_path / "suspects.csv")
    with service(served.bundle, free_port(), labels=labels, queue=[str(tmp_path / "suspects.csv")]) as address:
        browser.open(address)
        browser.wait_for("#progress", "0 of 3 reviewed")
        browser.one("#start-review").click()
        for given, suggested in (("7", "2"), ("1", "4"), ("3", "5")):
            browser.wait_for("#case", f"The data say {given}; suggested: {suggested}")
            browser.decide(suggested)
        browser.wait_for("#progress", "3 of 3 reviewed")
        until(lambda: len(lines(labels)) == 3)
        assert browser.faults() == []
    assert [line["label"] for line in lines(labels)] == [2, 4, 5]
    assert [line["sha256"] for line in lines(labels)] == [sha256(paths[row]) for row in (1, 2, 0)]


@in_browser
@pytest.mark.slow
def test_an_audit_of_what_is_dropped_is_reviewed_beside_the_suspects(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    labels, grades = tmp_path / "labels.jsonl", tmp_path / "grades.jsonl"
    with service(served.bundle, free_port(), labels=labels, grades=grades, audit=1.0) as address:
        browser.open(address)
        browser.drop(served.images)
        browser.wait_for("#summary", "10 inputs: 0 trusted, 0 suspect, 9 to review, 1 unreadable.")
        assert len(browser.all("#cards .badge")) == 1, "that of the unreadable one"
        browser.one("#start-review").click()
        for place in range(9):
            browser.wait_for("#progress", f"{9 - place} to review")
            assert not re.search("suspect|trusted|suspicion", browser.text("#case"), re.IGNORECASE)
            browser.decide("c")
        browser.wait_for("#summary", "10 inputs: 4 trusted, 5 suspect, 1 unreadable.")
        until(lambda: len(lines(labels)) == 9)
    reviewed = read_reviewed([labels], [grades], tuple("0123456789"), fewest=1)
    reviewed.check_drawn()
    assert (len(reviewed.labels), reviewed.trusted.sum(), reviewed.rows) == (9, 4, 9)


@in_browser
@pytest.mark.slow
def test_ten_images_are_graded_turned_reviewed_and_still_there_after_a_reload(
    browser: Browser, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, whose own process is for `test_process.py`."""
    labels, queue = tmp_path / "labels.jsonl", served.suspects()

    def reviewed(client: httpx2.Client) -> bool:
        browser.open(str(client.base_url))
        browser.drop(served.images)
        browser.wait_for("#summary", "10 inputs: 4 trusted, 5 suspect, 1 unreadable.")
        check_cards(browser, served)
        browser.one("#start-review").click()
        check_sweep(browser, served)

        for place, path in enumerate(queue):
            browser.wait_for("#progress", f"Suspect {place + 1} of 5")
            (label,) = served.grader.grade(served.inputs(path)).labels.tolist()
            browser.wait_for("#case-title", f"The model says {label}")
            review(browser, place, label)
            browser.wait_for(f'#cards [data-id="{sha256(path)}"] .decision', "saved.")
            assert [line["sha256"] for line in lines(labels)][place:] == [sha256(path)]
            if place == 2:
                reload(browser)
        browser.wait_for("#progress", "all reviewed")
        browser.wait_for("#shares", "5 of 5 reviewed: 2 confirmed (40.0%), 3 corrected (60.0%).")
        assert browser.one("#done").get_attribute("value") == "5"
        assert not forbidden(browser.text("body"))
        shown = decisions(browser)
        assert len(shown) == 5

        reload(browser)
        browser.wait_for("#progress", "Suspect 1 of 5, all reviewed")
        assert decisions(browser) == shown
        check_cards(browser, served)
        assert browser.faults() == []
        return True

    asked = (str(served.bundle), "--trust-bundle-code", "--labels-file", str(labels))
    assert serve_while(monkeypatch, asked, reviewed)
    told = lines(labels)
    assert [line["input"] for line in told] == [path.name for path in queue]
    for place, (path, line) in enumerate(zip(queue, told, strict=True)):
        (label,) = served.grader.grade(served.inputs(path)).labels.tolist()
        assert line["predicted"] == label
        assert line["confirmed"] == (place in (0, 3))
        assert (line["label"] == label) == line["confirmed"]


@in_browser
@pytest.mark.slow
def test_a_grader_without_a_second_opinion_shows_none(
    browser: Browser, served: Served, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    base, origin = served.grader.adapted.base, served.grader.origin
    alone = fit_grader(views_alone(base, ()), digits[1], target=Recall(0.9), score="softmax", origin=origin)
    alone.save(tmp_path / "softmax.petm")
    with service(tmp_path / "softmax.petm", free_port(), labels=tmp_path / "labels.jsonl") as address:
        browser.open(address)
        browser.drop(served.images)
        browser.wait_for("#summary", "1 unreadable.")
        browser.wait_for("#start-review", "Review")
        browser.one("#start-review").click()
        browser.wait_for("#case table", "The model")
        if folder := os.environ.get("PETM_PICTURES"):
            browser.driver.save_screenshot(f"{folder}/no-second.png")
        assert not re.search("second|opinion|alpha", browser.text("body"), re.IGNORECASE)
        assert not browser.all("input[type=range], .key.second")
        assert {len(row.find_elements("css selector", "td")) for row in browser.all("#case tbody tr")} == {1}
        browser.decide("c")
        until(lambda: lines(tmp_path / "labels.jsonl"))
        assert browser.faults() == []
    assert lines(tmp_path / "labels.jsonl")[0]["second"] is None


@in_browser
@pytest.mark.slow
def test_where_a_cascade_asks_for_no_second_opinion_the_page_says_so(
    browser: Browser, served: Served, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    adapted = randomise(attach_adapter(copy.deepcopy(served.grader.adapted.base), {"fc1": 4}), scale=0.2)
    set_cascade(adapted, digits[1], 0.2)
    grader = fit_grader(adapted, digits[1], target=Recall(0.9), origin=served.grader.origin)
    grader.save(tmp_path / "cascade.petm")
    labels = tmp_path / "labels.jsonl"
    with service(tmp_path / "cascade.petm", free_port(), labels=labels) as address:
        browser.open(address)
        browser.drop(served.images)
        browser.wait_for("#summary", "1 unreadable.")
        asked = []
        for path in served.readable:
            logits = adapted(served.inputs(path), alpha=0.0)
            asked.append(bool(adapted.cascade.asks(maximum_softmax(logits))[0]))
            card = f'#cards [data-id="{sha256(path)}"]'
            assert ("No second opinion was computed" in browser.text(card)) == (not asked[-1])
            assert len(browser.all(f"{card} .opinions thead th")) == 2 + asked[-1]
        assert sorted(set(asked)) == [False, True]
        browser.one(f'#cards [data-id="{sha256(served.readable[asked.index(False)])}"] button').click()
        browser.decide("c")
        until(lambda: labels.exists() and lines(labels))
        assert browser.faults() == []
    assert lines(labels)[0]["second"] is None


def review(browser: Browser, place: int, label: int) -> None:
    """Confirms the first and the fourth, corrects the others: each in a way of its own."""
    other = (label + 1) % 10
    if place == 0:
        browser.decide("c")
    elif place == 1:
        browser.decide(str(other))
    elif place == 2:
        browser.one(f'#candidates [data-label="{other}"]').click()
    elif place == 3:
        browser.one("#confirm").click()
    else:
        browser.driver.execute_script("document.activeElement.blur()")
        browser.decide(str(other))


def reload(browser: Browser) -> None:
    browser.driver.refresh()
    browser.wait_for("#summary", "10 inputs: 4 trusted, 5 suspect, 1 unreadable.")


def decisions(browser: Browser) -> list[str]:
    return [text for card in browser.all("#cards .decision") if (text := card.text)]


def check_cards(browser: Browser, served: Served) -> None:
    """Each card says what the grader says."""
    for path in served.readable:
        grades, both = served.grader.grade(served.inputs(path)), dual_logits(served.grader.adapted, served.inputs(path))
        card = f'#cards [data-id="{sha256(path)}"]'
        text = browser.text(card)
        probability = float(grades.probability_of_error[0])
        assert f"The model says {grades.labels[0]}" in text
        assert path.name in text
        assert ("trusted" if grades.trusted[0] else "suspect") in text
        assert f"Probability of error {percent(probability)}" in text
        for logits in both:
            assert percent(float(logits.double().softmax(1).max())) in browser.text(f"{card} .opinions")
    broken = next(path for path in served.images if path.name == "broken.png")
    text = browser.text(f'#cards [data-id="{sha256(broken)}"]')
    assert "unreadable" in text
    assert "not an image of a known format" in text
    assert MISSING not in text


def check_sweep(browser: Browser, served: Served) -> None:
    """The slider of the most suspect is folded away, and ends at both opinions; it is moved by keyboard."""
    from selenium.webdriver.common.keys import Keys

    path = served.suspects()[0]
    both = dual_logits(served.grader.adapted, served.inputs(path))
    slider = browser.one('#case input[type="range"]')
    assert not slider.is_displayed()
    browser.one("#case summary").click()
    browser.wait_for("#case .turn", "It")
    slider.send_keys(Keys.END)
    browser.wait_for("#case .sweep-head", "Strength 100%")
    for key, strength, logits in ((Keys.HOME, "0%", both.base), (Keys.END, "100%", both.second)):
        slider.send_keys(key)
        probabilities = logits.double().softmax(1)[0]
        top = int(probabilities.argmax())
        browser.wait_for("#case .share.top", f"{top} {percent(float(probabilities[top]))}")
        said = f"{strength}: {top} at {percent(float(probabilities[top]))}"
        assert slider.get_attribute("aria-valuetext") == said
    slider.send_keys(*[Keys.ARROW_LEFT] * 10)
    browser.wait_for("#case .sweep-head", "Strength 50%")
    with torch.no_grad():
        half = served.grader.adapted(served.inputs(path), alpha=0.5).double().softmax(1)[0]
    for label in half.topk(2).indices.tolist():
        assert f"{label} {percent(float(half[label]))}" in browser.text("#case .shares")
    # Moving it has decided nothing.
    assert browser.text("#progress") == "Suspect 1 of 5, 5 to review"
    browser.driver.execute_script("document.activeElement.blur()")


@pytest.mark.slow
@in_browser
def test_a_decision_that_cannot_be_saved_is_kept_and_saved_later(
    browser: Browser, served: Served, tmp_path: Path
) -> None:
    labels, port = tmp_path / "labels.jsonl", free_port()
    first = served.suspects()[0]
    with service(served.bundle, port, labels=labels) as address:
        browser.open(address)
        browser.one("#files").send_keys("\n".join(map(str, served.suspects())))
        browser.wait_for("#summary", "5 inputs: 0 trusted, 5 suspect.")
        browser.one("#start-review").click()
    browser.decide("c")
    browser.wait_for("#unsaved", "1 decision not saved: The service cannot be reached. Save again")
    browser.wait_for(f'#cards [data-id="{sha256(first)}"] .decision', "not saved.")
    with service(served.bundle, port, labels=labels):
        browser.one("#save-again").click()
        browser.wait_for(f'#cards [data-id="{sha256(first)}"] .decision', "saved.")
        until(lambda: not browser.text("#unsaved"))
    browser.decide("c")
    browser.wait_for("#unsaved", "1 decision not saved")
    with service(served.bundle, port, labels=labels):
        browser.driver.refresh()  # sends what is not saved by itself
        until(lambda: len(lines(labels)) == 2)
        assert [line["sha256"] for line in lines(labels)] == [sha256(path) for path in served.suspects()[:2]]
        browser.wait_for("#progress", "3 to review")


@pytest.mark.slow
@in_browser
def test_keys_move_undo_and_help(browser: Browser, served: Served, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    labels = tmp_path / "labels.jsonl"
    with service(served.bundle, free_port(), labels=labels) as address:
        browser.open(address)
        browser.drop(served.images)
        browser.wait_for("#summary", "5 suspect")
        browser.press("j")  # goes to the review first: nobody decides on what is not in sight
        until(lambda: browser.driver.switch_to.active_element.get_attribute("id") == "case")
        assert "Suspect 1 of 5" in browser.text("#progress")
        for key, place in (
            ("j", 2), (Keys.ARROW_DOWN, 3), (Keys.ARROW_RIGHT, 4), ("j", 5), ("j", 5), ("k", 4), (Keys.ARROW_UP, 3),
            (Keys.ARROW_LEFT, 2), ("k", 1), ("k", 1),
        ):  # fmt: skip
            browser.press(key)
            browser.wait_for("#progress", f"Suspect {place} of 5")
        browser.press(Keys.ENTER)
        browser.wait_for("#progress", "Suspect 2 of 5, 4 to review")
        until(lambda: len(lines(labels)) == 1)
        browser.press("u")
        browser.wait_for("#progress", "Suspect 1 of 5, 5 to review")
        until(lambda: len(lines(labels)) == 2)
        first, second = lines(labels)
        assert (first["sha256"], first["confirmed"]) == (second["sha256"], True)
        assert second["label"] is None
        until(lambda: decisions(browser) == [])
        reload(browser)
        browser.wait_for("#progress", "Suspect 1 of 5, 5 to review")

        browser.press("?")
        assert browser.one("#help").get_attribute("open") is not None
        browser.press("c")  # is no decision while the help is open
        browser.one("#shortcuts-on").click()
        browser.press(Keys.ESCAPE)
        until(lambda: browser.one("#help").get_attribute("open") is None)
        browser.press("c")  # nor where shortcuts are off
        assert "5 to review" in browser.text("#progress")
        browser.one("#confirm").click()
        browser.wait_for("#progress", "4 to review")
        # A class to correct to is reached by Tab, and chosen by the space bar.
        browser.press(Keys.TAB, Keys.SPACE)
        browser.wait_for("#progress", "3 to review")
        until(lambda: len(lines(labels)) == 4)
        assert browser.faults() == []


@pytest.mark.slow
@in_browser
def test_a_key_is_asked_for_until_it_is_right(browser: Browser, served: Served, tmp_path: Path) -> None:
    with service(served.bundle, free_port(), key="sesame-sesame-sesame") as address:
        browser.driver.get(address)
        browser.wait_for("#key-reason", "The service needs a key.")
        browser.one("#key-field").send_keys("abracadabra\n")
        browser.wait_for("#key-reason", "The service refused this key.")
        browser.one("#key-field").send_keys("sesame-sesame-sesame\n")
        browser.wait_for("#about", "The model sorts images into 10 classes.")
        browser.one("#files").send_keys(str(served.suspects()[0]))
        browser.wait_for("#summary", "1 input: 0 trusted, 1 suspect.")
        browser.wait_for("#not-kept", "This service stores no labels: decisions stay in this browser.")
        browser.decide("c")
        browser.wait_for("#decided", "Confirmed")
        browser.driver.refresh()
        browser.wait_for("#summary", "1 input: 0 trusted, 1 suspect.")
        browser.wait_for("#decided", "not stored.")
        browser.decide("u")
        browser.wait_for("#progress", "1 to review")
        browser.decide("x")
        browser.wait_for("#shares", "0 confirmed (0.0%), 0 corrected (0.0%), 1 cannot tell (100.0%).")
        assert [error for error in browser.faults() if "401" not in error] == []


@pytest.mark.slow
@in_browser
def test_everything_has_a_name_and_fits_a_narrow_screen(
    browser: Browser, served: Served, address: str, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    browser.open(address)
    browser.drop(served.images)
    browser.wait_for("#summary", "1 unreadable")
    for details in browser.all("details"):
        browser.driver.execute_script("arguments[0].open = true", details)
    until(lambda: "Asking" not in browser.text("#cards") and browser.all("#cards .share"))
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        node
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in {"button", "slider", "radio", "checkbox", "image", "dialog"}
    ]
    assert len([node for node in controls if node["role"]["value"] == "slider"]) == 10
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    assert not browser.all("img"), "the file name that looks like markup has become an element"
    check_widths(browser)
    write_fit_report(served.grader, digits[1], tmp_path / "fit.html")
    (tmp_path / "figures").mkdir()
    for name in ("figure1", "drift", "alpha", "reliability", "risk_coverage"):
        (tmp_path / "figures" / f"{name}.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="640"/>')
    order = np.arange(100)
    judged = plain(judge(order / 100, order / 100, order % 10 == 0, order < 50))
    origin = SimpleNamespace(origin=Origin())
    write_report(Reproduction(example() | {"judgement": judged}, (), origin, tmp_path), tmp_path / "paper.html")
    for report in ("fit", "paper"):
        browser.driver.get((tmp_path / f"{report}.html").as_uri())
        check_widths(browser)


def check_widths(browser: Browser) -> None:
    """Whatever the width and the colours, nothing is cut, and the console says nothing."""
    cut = (
        "const cut = [...document.querySelectorAll('main, main *')].filter((one) => one.scrollWidth > one.clientWidth"
        " && !one.closest('.unseen, thead') && !['visible', 'clip'].includes(getComputedStyle(one).overflowX)"
        " && getComputedStyle(one).textOverflow !== 'ellipsis');"
        "return [innerWidth, document.scrollingElement.scrollWidth <= innerWidth, cut.map((one) => one.outerHTML)];"
    )
    for _, width in at_widths(browser.driver):
        assert browser.driver.execute_script(cut) == [width, True, []]
    assert browser.faults() == []


@pytest.mark.slow
@in_browser
def test_a_browser_that_keeps_nothing_says_so_and_grades(browser: Browser, served: Served, address: str) -> None:
    refuse = "".join(
        f"Object.defineProperty(window, {name!r}, {{ get() {{ throw new DOMException('no', 'SecurityError'); }} }});"
        for name in ("indexedDB", "localStorage", "sessionStorage")
    )
    browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    browser.open(address)
    browser.drop(served.images)
    browser.wait_for("#summary", "10 inputs: 4 trusted, 5 suspect, 1 unreadable.")
    browser.wait_for("#not-lasting", "a reload empties the page")
    assert browser.faults() == []


@pytest.mark.slow
@in_browser
def test_images_are_pasted_once(browser: Browser, served: Served, address: str) -> None:
    browser.open(address)
    pasted = base64.b64encode(served.suspects()[0].read_bytes()).decode()
    script = (
        "const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));"
        "const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'image.png', { type: 'image/png' }));"
        "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));"
    )
    browser.driver.execute_script(script, pasted)
    browser.wait_for("#summary", "1 input: 0 trusted, 1 suspect.")
    browser.driver.execute_script(script, pasted)
    browser.wait_for("#add-note", "1 input of 1 was here already.")
    assert len(browser.all("#cards li")) == 1


@pytest.mark.slow
@in_browser
def test_of_many_classes_the_first_have_keys_and_all_are_found_by_typing(
    browser: Browser, served: Served, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    names = ("<b>nought</b>", *(f"class {number}" for number in range(1, 12)))
    model = seeded(TwelveClasses).eval()
    save_weights(model, tmp_path / "w.safetensors")
    where = ModelOrigin("networks:TwelveClasses", {}, str(tmp_path / "w.safetensors"), names)
    adapted = randomise(attach_adapter(model, {"fc2": 4}), scale=0.5)
    grader = fit_grader(adapted, digits[1], target=Coverage(0.01), origin=Origin(where, InputOrigin((28, 28), 1)))
    grader.save(tmp_path / "twelve.petm")
    labels, image = tmp_path / "labels.jsonl", served.readable[0]
    base, opinion = (logits.double().softmax(1)[0] for logits in dual_logits(adapted, served.inputs(image)))
    highest = base.maximum(opinion)
    highest[opinion.argmax()] = 2  # what the second opinion says comes first
    marked = grader.grade(served.inputs(image))[0].candidates or ()
    highest[list(marked)] += 4  # and before it the candidates
    others = [label for label in highest.argsort(descending=True).tolist() if label > 8]
    with service(tmp_path / "twelve.petm", free_port(), labels=labels) as address:
        browser.driver.get(address)
        browser.wait_for("#about", "The model sorts images into 12 classes.")
        browser.drop((image,))
        browser.wait_for("#summary", "1 input: 0 trusted, 1 suspect.")
        browser.one("#start-review").click()
        assert [button.text.split("\n") for button in browser.all("#candidates button")] == [
            *([name, str(place + 1)] for place, name in enumerate(names[:9])),
            *([names[label]] for label in others),
        ]
        held = [int(button.get_attribute("data-label")) for button in browser.all("#candidates .candidate")]
        assert sorted(held) == sorted(each for each in marked if each in (*range(9), *others))
        assert len(held) > 0
        browser.decide("4")
        until(lambda: len(lines(labels)) == 1)
        browser.press("/", *"Class", Keys.ENTER)
        valid = "return document.getElementById('other').validationMessage"
        until(lambda: browser.driver.execute_script(valid) == "11 classes match. Type more.")
        browser.press(*" 11")
        assert len(lines(labels)) == 1  # to type is not yet to decide
        browser.press(Keys.ENTER)
        until(lambda: len(lines(labels)) == 2)
        browser.wait_for("#decided", "Corrected to class 11, saved.")
        browser.press("u")
        until(lambda: len(lines(labels)) == 3)
        browser.press("/", *"10", Keys.ENTER)  # what one name alone contains
        browser.wait_for("#decided", "Corrected to class 10, saved.")
        assert browser.faults() == []
    assert [line["label_name"] for line in lines(labels)] == [names[3], names[11], None, names[10]]


@in_browser
@pytest.mark.slow
def test_texts_are_written_graded_and_corrected(browser: Browser, tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path / "bert", hf_folders.bert(), hf_folders.word_tokenizer())
    model, encoder = load_classifier(folder), load_processor(folder)
    assert isinstance(encoder, Tokenizer)
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": kind}) + "\n" for text, kind in hf_folders.QUESTIONS)
    )
    data = Tokenized(read_texts(tmp_path / "texts.jsonl", classes=hf_folders.KINDS), encoder)
    origin = Origin(
        ModelOrigin(f"hf:{folder}", {}, None, hf_folders.KINDS),
        InputOrigin(processor=str(folder), fingerprint=encoder.fingerprint, text_column="text"),
    )
    grader = fit_grader(randomise(attach_adapter(model, {"classifier": 2})), data, target=Coverage(0.01), origin=origin)
    grader.save(tmp_path / "texts.petm")
    labels, asked = tmp_path / "labels.jsonl", ["Who met Galileo ?", "Where is <b>Rome</b> ?"]
    with service(tmp_path / "texts.petm", free_port(), labels=labels) as address:
        browser.driver.get(address)
        browser.wait_for("#about", "The model sorts texts into 3 classes.")
        browser.one("#text").send_keys("\n\n".join([*asked, asked[0]]))
        browser.one("#texts button").click()
        browser.wait_for("#add-note", "1 input of 3 was here already.")
        browser.wait_for("#summary", "2 inputs: 0 trusted, 2 suspect.")
        assert [element.text for element in browser.all("#cards blockquote")] == asked
        browser.one("#start-review").click()
        browser.decide("2")  # the second class
        browser.wait_for("#cards", "PLACE, saved.")
        browser.driver.refresh()
        browser.wait_for("#summary", "2 inputs: 0 trusted, 2 suspect.")
        browser.wait_for("#progress", "1 to review")
        assert browser.faults() == []
    (line,) = lines(labels)
    assert line["text"] in asked
    assert (line["label"], line["label_name"]) == (1, "PLACE")


@pytest.mark.slow
@in_browser
def test_without_the_browsers_help_a_hash_is_the_same(browser: Browser) -> None:
    """Over plain HTTP from another machine there is no crypto.subtle."""
    browser.driver.get("about:blank")
    source = base64.b64encode(SCRIPTS["sha256.js"].encode()).decode()
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000):
        content = bytes(index * 31 % 256 for index in range(size))
        found = browser.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "import(`data:text/javascript;base64,${arguments[0]}`)"
            ".then((module) => done(module.digest(Uint8Array.from(arguments[1]))), (error) => done(String(error)));",
            source,
            list(content),
        )
        assert found == hashlib.sha256(content).hexdigest(), size
