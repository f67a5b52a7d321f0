"""Review of graded archives: the queue, decisions, grades that a service keeps, and what monitor makes of them."""

import copy
import hashlib
import json
import re
import sys
import time
import warnings
from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from torch import nn

import hf_folders
from networks import randomise
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.data.base import Data
from petm.data.reader import Reader
from petm.data.reviewed import read_reviewed
from petm.data.sources import open_sources
from petm.errors import DataError, PetmWarning, RunError
from petm.grading.grade_files import grade_files
from petm.grading.grade_table import read_grades
from petm.grading.grader import Grader, fit_grader
from petm.grading.label_errors import FoundLabelErrors
from petm.grading.production import read_production
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_classifier import load_classifier
from petm.models.hf_processors import load_processor
from petm.selective.targets import Coverage
from petm.selective.thresholds import DISAGREEMENT, Threshold
from petm.serving.app import make_app
from petm.serving.engine import GraderEngine
from petm.serving.limits import Limits
from petm.serving.line_file import GradesFile
from petm.serving.reading import reader_for

NAMES = tuple("0123456789")
READER = Reader(size=(28, 28), channels=1)
AUDIT = 0.3


def engine_of(grader: Grader) -> Any:
    return lambda limits: GraderEngine(grader, reader_for(grader.origin.inputs, limits))


def client_of(load: Any, **settings: Any) -> TestClient:
    app, _ = make_app(load, Limits(), **settings)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def ready(client: TestClient) -> TestClient:
    for _ in range(500):
        if client.get("/readyz").status_code == 200:
            return client
        time.sleep(0.01)
    raise AssertionError("not ready")


def png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def grader(_trained: nn.Module, digits: tuple[Data, ...]) -> Grader:
    adapted = randomise(attach_adapter(copy.deepcopy(_trained), {"fc1": 4}), scale=0.2)
    origin = Origin(ModelOrigin("networks:TinyCNN", classes=NAMES), InputOrigin((28, 28), 1))
    return fit_grader(adapted, digits[1], target=Coverage(0.7), origin=origin)


@pytest.fixture
def place(digits: tuple[Data, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a hundred images of digits."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number, image in enumerate((digits[2].inputs(range(100))[:, 0].numpy() * 255).round().astype(np.uint8)):
        Path(f"images/{number:03}.png").write_bytes(png(image))
    return tmp_path


def archive(grader: Grader, name: str = "g.parquet", **how: Any) -> list[dict[str, Any]]:
    grade_files(grader, open_sources(["images"]), READER, Path(name), told={}, **({"audit": AUDIT} | how))
    return [row for batch in read_grades(name) for row in batch.to_pylist()]


def reviewing(grader: Grader, *queue: str, **more: Any) -> TestClient:
    return client_of(engine_of(grader), queue=queue or ("g.parquet",), labels=Path("labels.jsonl"), **more)


def entries(client: TestClient) -> list[dict[str, Any]]:
    """All that the page would fetch."""
    found, start = list[dict[str, Any]](), 0
    while start is not None:
        answer = client.get("/queue", params={"start": start}).raise_for_status().json()
        found, start = found + answer["items"], answer["next"]
    return found


def decide(client: TestClient, item: dict[str, Any], label: int | None, **more: Any) -> None:
    raw = client.get(f"/queue/{item['number']}").raise_for_status().content
    line = {"image": b64encode(raw).decode(), "input": item["input"], "label": label, "confirmed": True}
    client.post("/labels", json=line | {"suspicion": 0.5} | more).raise_for_status()


def test_suspects_in_their_order_and_the_audit_between_them(grader: Grader, place: Path) -> None:
    rows = archive(grader)
    wanted = {row["input"]: row for row in rows if row["grade"] == "suspect" or row["audit"]}
    with reviewing(grader) as client:
        found = entries(ready(client))
        assert client.get("/about").json()["queue"] is True
        for item in found[:3]:
            assert client.get(f"/queue/{item['number']}").content == Path(item["input"]).read_bytes()
        assert {tuple(item) for item in found} == {("number", "input")}, "nothing tells a suspect from an audit row"
    assert sorted(item["input"] for item in found) == sorted(wanted)
    grades = [wanted[item["input"]]["grade"] for item in found]
    suspicion = [wanted[item["input"]]["suspicion"] for item in found if wanted[item["input"]]["grade"] == "suspect"]
    assert suspicion == sorted(suspicion, reverse=True)
    first, last = grades.index("trusted"), len(grades) - 1 - grades[::-1].index("trusted")
    assert first < len(grades) / 3 < 2 * len(grades) / 3 < last, "they lie all over the queue"


@pytest.mark.parametrize("audit", [AUDIT, None])
def test_what_is_decided_is_not_asked_again_after_a_restart(grader: Grader, place: Path, audit: float | None) -> None:
    archive(grader, audit=audit)
    with reviewing(grader) as client:
        first, second, third, *rest = entries(ready(client))
        decide(client, first, 3)
        decide(client, second, None, decision="cannot tell")
        decide(client, third, 4)
        decide(client, third, None)  # taken back
    line = json.loads(Path("labels.jsonl").read_text().splitlines()[1])
    assert (line["label"], line["decision"], line["path"]) == (None, "cannot tell", None)
    with reviewing(grader) as client:
        assert entries(ready(client)) == [third, *rest]
        answer = client.get("/queue").json()
        assert (answer["decided"], answer["total"], answer["lost"]) == (2, len(rest) + 3, 0)
        wrong = {"image": "", "label": 3, "decision": "cannot tell"}
        assert client.post("/labels", json=wrong).status_code == 400
        for path, status in (("/queue/9999", 404), ("/queue/-1", 400), ("/queue/x", 400), ("/queue?start=x", 400)):
            assert client.get(path).status_code == status


def test_from_the_archive_over_the_queue_to_monitor(
    grader: Grader, digits: tuple[Data, ...], place: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    risk = replace(grader, threshold=replace(grader.threshold, max_risk=0.5, confidence=0.9, rule="by hand"))
    risk.save("my.petm")
    rows = archive(risk)
    truth = dict(zip(sorted(row["input"] for row in rows), digits[2].labels[:100].tolist(), strict=True))
    with reviewing(risk) as client:
        for item in entries(ready(client)):
            decide(client, item, truth[item["input"]])
    monkeypatch.setattr(sys, "argv", ["petm", "monitor", "my.petm", "g.parquet", "--labels", "labels.jsonl", "--json"])
    main()
    told = json.loads(capfd.readouterr().out)
    drawn = [row for row in rows if row["audit"]]
    wrong = sum(truth[row["input"]] != row["label"] for row in drawn)
    assert (told["whole"]["wrong"]["of"], told["whole"]["wrong"]["count"]) == (len(drawn), wrong)
    assert told["guarantee"]["labelled_suspects"] == sum(row["grade"] == "suspect" for row in rows)
    assert any("audit" in sentence for sentence in told["findings"])


def test_inputs_that_are_gone_or_changed_are_told_and_the_others_are_shown(grader: Grader, place: Path) -> None:
    rows = archive(grader)
    wanted = [row["input"] for row in rows if row["grade"] == "suspect" or row["audit"]]
    Path(wanted[0]).unlink()
    Path(wanted[1]).write_bytes(b"private: no image")
    with warnings.catch_warnings(record=True) as told, reviewing(grader) as client:
        warnings.simplefilter("always")
        found = entries(ready(client))
        assert len(found) == len(wanted) - 1
        gone = [client.get(f"/queue/{item['number']}") for item in found if item["input"] == wanted[1]]
        assert [answer.status_code for answer in gone] == [410]
        assert client.get("/queue").json()["lost"] == 2
    (warning,) = (str(each.message) for each in told if each.category is PetmWarning)
    assert re.match(rf"queue: .* 1 of {len(wanted)} .*{wanted[0]}", warning)


def refused(grader: Grader, *queue: str) -> BaseException | None:
    app, service = make_app(engine_of(grader), Limits(), queue=queue, labels=Path("labels.jsonl"))
    with TestClient(app):
        for _ in range(1000):
            if service.failure is not None or service.state == "ready":
                break
            time.sleep(0.01)
    return service.failure


def test_queues_that_are_refused_in_one_line(grader: Grader, place: Path) -> None:
    archive(grader)
    archive(replace(grader, threshold=Threshold(0.0, "by hand")), "other.csv")
    archive(replace(grader, threshold=Threshold(9.0, "by hand")), "empty.csv", audit=None)
    named = replace(grader.origin, model=replace(grader.origin.model, classes=tuple("abcdefghij")))
    archive(replace(grader, origin=named), "named.jsonl")
    Path("images").rename("moved")
    none = replace(grader, threshold=Threshold(9.0, "by hand"))
    for by, name, message in (
        (grader, "other.csv", r"other\.csv: expected grades by this bundle"),
        (grader, "named.jsonl", r"named\.jsonl: expected grades by this bundle, got the class"),
        (none, "empty.csv", r"empty\.csv: expected suspects or rows of an audit, got none"),
        (grader, "g.parquet", r"queue: expected the inputs of the graded rows, got .* gone"),
        (grader, "absent.parquet", r"absent\.parquet: expected grades"),
    ):
        failure = refused(by, name)
        assert isinstance(failure, DataError)
        assert re.match(message, str(failure))
        assert "\n" not in str(failure)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_that_are_probably_wrong_come_in_their_order_with_both_labels(
    grader: Grader, place: Path, digits: tuple[Data, ...], kind: str
) -> None:
    random = np.random.default_rng(0)
    probability, suggested = random.random(100), random.integers(10, size=100)
    probability[4] = np.nan  # no opinion
    order, labels = np.argsort(-np.nan_to_num(probability, nan=-1)), digits[2].labels[:100].numpy()
    places = [(f"images/{number:03}.png", None) for number in range(100)]
    found = FoundLabelErrors(labels, suggested, probability, np.ones(100, int), order, NAMES, places)
    found.save(f"suspects.{kind}")
    with reviewing(grader, f"suspects.{kind}") as client:
        items = entries(ready(client))
        decide(client, items[0], int(suggested[order[0]]))
        assert len(entries(client)) == 98
    names = [(f"images/{row:03}.png", str(labels[row]), str(suggested[row])) for row in order[:-1]]
    assert [(item["input"], item["given"], item["suggested"]) for item in items] == names
    line = json.loads(Path("labels.jsonl").read_text())
    assert (line["input"], line["label"]) == (names[0][0], int(suggested[order[0]]))
    replace(found, classes=tuple("abcdefghij")).save("others.csv")
    assert re.match(r"others\.csv: expected labels of the classes", str(refused(grader, "others.csv")))


def test_a_service_without_a_queue_has_none(grader: Grader, place: Path) -> None:
    with client_of(engine_of(grader)) as client:
        assert ready(client).get("/queue").status_code == 404
        assert client.get("/queue/0").status_code == 404


def test_grades_that_a_service_keeps_join_its_labels(
    grader: Grader, digits: tuple[Data, ...], place: Path, tmp_path: Path
) -> None:
    images = {path.name: path.read_bytes() for path in sorted(Path("images").iterdir())}
    more: dict[str, Any] = {"labels": Path("labels.jsonl"), "grades": Path("grades.jsonl"), "audit": 0.5}
    with client_of(engine_of(grader), **more) as client:
        ready(client)
        sent = [("files", item) for item in images.items()]
        rows = client.post("/grade", files=[*sent, ("files", ("bad.png", b"none"))]).json()["grades"]
        assert client.get("/about").json()["audit"] == 0.5
        for row in rows[:-1]:
            if row["grade"] == "suspect" or row["audit"]:
                line = {
                    "image": b64encode(images[row["input"]]).decode(),
                    "label": int(row["label"]),
                    "confirmed": True,
                }
                client.post("/labels", json=line | {"suspicion": row["suspicion"]}).raise_for_status()
    with open("grades.jsonl", "ab") as file:
        file.write(b'{"input": "torn')
    kept = [row for batch in read_grades("grades.jsonl") for row in batch.to_pylist()]
    assert [(row["input"], row["grade"], row["suspicion"]) for row in kept] == [
        (row["input"], row["grade"], row["suspicion"]) for row in rows
    ]
    assert [row["sha256"] for row in kept[:-1]] == [hashlib.sha256(each).hexdigest() for each in images.values()]
    assert {row["chance"] for row in kept if row["grade"] == "trusted"} == {0.5}
    assert json.loads(Path("grades.jsonl").read_text().splitlines()[0])["time"]
    reviewed = read_reviewed(["labels.jsonl"], ["grades.jsonl"], NAMES)
    found = read_production(["grades.jsonl"], grader.threshold, reviewed=reviewed)
    assert found.labelled["trusted"].sum() == sum(row["audit"] or False for row in kept)
    assert (reviewed.unmatched, reviewed.undrawn) == (0, 0)
    with client_of(engine_of(grader), **more) as client:
        ready(client).post("/grade", json={"images": ["%%%"]}).raise_for_status()
    whole = Path("grades.jsonl").read_text()
    assert (whole.count("\n"), whole.endswith("\n"), "torn" in whole) == (102, True, False)


@pytest.mark.parametrize("content", ["mine\n", '{"label": 3}\n', "[1]\n"])
def test_a_grades_file_that_is_another_is_not_written_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "grades.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"grades\.jsonl: "):
        GradesFile(path)
    assert path.read_text() == content
    path.write_text("")
    file = GradesFile(path)
    with pytest.raises(RunError, match="another process"):
        GradesFile(path)
    file.close()


def test_a_torn_line_longer_than_a_block_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "grades.jsonl"
    line = json.dumps({"input": "a", "grade": "trusted", "suspicion": 0.1}) + "\n"
    path.write_text(line + "x" * 200_000)
    GradesFile(path).close()
    assert path.read_text() == line


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_texts_of_a_table_are_reviewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = hf_folders.save(tmp_path / "model", hf_folders.bert(), hf_folders.word_tokenizer())
    tokenizer = load_processor(folder)
    texts = [f"{text} {n}" for n in range(8) for text, _ in hf_folders.QUESTIONS]
    if kind == ".parquet":
        pq.write_table(pa.table({"text": texts}), "t.parquet")
    else:
        lines = (
            ["text", *(f'"{text}"' for text in texts)]
            if kind == ".csv"
            else [json.dumps({"text": text}) for text in texts]
        )
        Path(f"t{kind}").write_text("\n".join(lines) + "\n")
    adapted = randomise(attach_adapter(load_classifier(folder), {"classifier": 2}))
    origin = Origin(ModelOrigin(classes=hf_folders.KINDS), InputOrigin(text_column="text"))
    grader = Grader(adapted, DISAGREEMENT, origin=origin)
    sources, reader = open_sources([f"t{kind}"], text_column="text"), Reader(encoder=tokenizer)  # type: ignore[arg-type]
    grade_files(grader, sources, reader, Path("g.csv"), told={}, audit=0.5)
    rows = [row for batch in read_grades("g.csv") for row in batch.to_pylist()]

    def load(limits: Limits) -> GraderEngine:
        return GraderEngine(grader, reader_for(origin.inputs, limits, tokenizer))

    with client_of(load, queue=("g.csv",), labels=Path("labels.jsonl")) as client:
        found = entries(ready(client))
        assert len(found) == sum(row["grade"] == "suspect" or row["audit"] for row in rows) > 20
        for item in found:
            text = client.get(f"/queue/{item['number']}").text
            line = {"text": text, "label": 0, "confirmed": False, "suspicion": 0.5}
            client.post("/labels", json=line).raise_for_status()
    reviewed = read_reviewed(["labels.jsonl"], ["g.csv"], hf_folders.KINDS, fewest=1)
    assert (len(reviewed.labels), reviewed.unmatched, reviewed.unanswered) == (len(found), 0, 0)
