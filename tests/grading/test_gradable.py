"""What may be graded: whatever the form, the grades are those of the same samples as one batch."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import hf_folders
from networks import TinyCNN, images, randomise, seeded
from petm.adapter.model import attach_adapter
from petm.data.base import TensorData
from petm.errors import ArgumentError, DataError, PetmError
from petm.grading.grader import Grader
from petm.grading.grades import Grades
from petm.grading.input_profile import InputProfile
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_processors import as_processor
from petm.selective.thresholds import Threshold

PIXELS = (images(7) * 255).to(torch.uint8)
X = PIXELS.float() / 255
NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def grader() -> Grader:
    """Of grey images of 28×28, some trusted."""
    inputs = InputOrigin((28, 28), 1, profile=InputProfile.of(X.numpy()))
    adapted = randomise(attach_adapter(seeded(TinyCNN), {"fc1": 4}))
    suspicion = Grader(adapted, Threshold(0.5, "by hand")).grade(X).suspicion
    return Grader(
        adapted, Threshold(float(np.median(suspicion)), "half"), origin=Origin(ModelOrigin(classes=NAMES), inputs)
    )


@pytest.fixture(scope="module")
def onnx(grader: Grader, tmp_path_factory: pytest.TempPathFactory) -> OnnxGrader:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(grader, path)
    return OnnxGrader(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for row, image in enumerate(pictures()):
        image.save(folder / f"{row}.png")
    return sorted(folder.iterdir())


def pictures() -> list[Image.Image]:
    return [Image.fromarray(each[0]) for each in PIXELS.numpy()]


class Pairs(Dataset[Any]):
    """Inputs with labels that nobody may read, by a transform."""

    def __init__(self, *, labelled: bool = True) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        return (X[range(len(X))[row]], "no class") if self.labelled else X[range(len(X))[row]]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from X


class Table:
    """A ``datasets.Dataset`` as petm sees it: rows by name, columns, and class names in its features."""

    def __init__(self, classes: tuple[str, ...] = (), **columns: list[Any]) -> None:
        self.columns, self.column_names = columns, list(columns)
        self.features = {"label": type("ClassLabel", (), {"names": list(classes) or None})()}

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, key: int | str) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: held[key] for name, held in self.columns.items()}


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: X.numpy(),
    "list of tensors": lambda: list(X),
    "list of bytes": lambda: list(PIXELS.numpy()),
    "images": pictures,
    "data set": Pairs,
    "data set without labels": lambda: Pairs(labelled=False),
    "stream": Stream,
    "generator": lambda: (each for each in X),
    "loader": lambda: DataLoader(Pairs(), 3),
    "loader without labels": lambda: DataLoader(Pairs(labelled=False), 3),
    "pair": lambda: (X, torch.zeros(7)),
    "data": lambda: TensorData(X),
    "rows by name": lambda: Table(image=pictures(), label=[0] * 7),
}


def same(found: Grades, expected: Grades) -> None:
    np.testing.assert_allclose(found.suspicion, expected.suspicion, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.trusted, expected.trusted)
    assert found.names is not None
    assert found.names.tolist() == [NAMES[label] for label in expected.labels]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_graded_as_one_batch(form: str, grader: Grader) -> None:
    same(grader.grade(FORMS[form](), batch_size=4), grader.grade(X))


@pytest.mark.parametrize("form", ["list of tensors", "images", "data set", "loader"])
def test_a_graph_takes_the_same_forms(form: str, onnx: OnnxGrader) -> None:
    same(onnx.grade(FORMS[form](), batch_size=4), onnx.grade(X.numpy()))


def test_files_are_graded_by_their_paths(grader: Grader, onnx: OnnxGrader, files: list[Path]) -> None:
    expected = grader.grade(X)
    for given in (files[0].parent, str(files[0].parent), files, list(map(str, files)), np.array(list(map(str, files)))):
        same(grader.grade(given, batch_size=4), expected)
    same(grader.grade(files[2]), expected[2:3])
    same(onnx.grade(str(files[2])), onnx.grade(X[2:3].numpy()))


def test_one_sample_needs_no_batch(grader: Grader, onnx: OnnxGrader) -> None:
    expected = grader.grade(X[2:3])
    for given in (X[2], X[2].numpy(), PIXELS[2], pictures()[2]):
        same(grader.grade(given), expected)
    same(onnx.grade(X[2].numpy()), onnx.grade(X[2:3].numpy()))


def test_an_image_in_memory_is_read_as_its_file_is(grader: Grader) -> None:
    """Upright, in grey, in the size of the fit."""
    turned, exif, content = (
        Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB"),
        Image.Exif(),
        BytesIO(),
    )
    exif[0x0112] = 6
    turned.save(content, "PNG", exif=exif)
    upright = np.asarray(turned.transpose(Image.Transpose.ROTATE_270).convert("L").resize((28, 28), 2), np.float32)
    with pytest.warns(UserWarning, match="resize"):
        found = grader.grade(Image.open(content))
    np.testing.assert_allclose(found.suspicion, grader.grade(upright[None, None] / 255).suspicion, atol=1e-6)
    grader.grade(Image.new("CMYK", (28, 28)))


@pytest.mark.parametrize(
    "odd", [3.5, object(), [object()], [[0.5]], None, DataLoader(Pairs(), 3, shuffle=True), {"x": [1]}, "great film"]
)
def test_what_it_takes_is_said_in_one_line(grader: Grader, odd: Any) -> None:
    with pytest.raises(PetmError, match=r"^(x|inputs|great film): expected .*, got [^\n]*$"):
        grader.grade(odd)


def test_pixels_are_refused_where_the_fit_had_other_values(grader: Grader) -> None:
    inputs = InputOrigin((28, 28), 1, mean=(0.5,), std=(0.5,), profile=InputProfile.of(X.numpy() * 4 - 2))
    standardised = Grader(grader.adapted, grader.threshold, origin=Origin(inputs=inputs))
    with pytest.raises(DataError, match="inputs"):
        standardised.grade(list(PIXELS))
    expected = standardised.grade((X - 0.5) / 0.5)
    np.testing.assert_allclose(standardised.grade(pictures()).suspicion, expected.suspicion, atol=1e-5)


def test_samples_are_named_where_they_cannot_be_graded(grader: Grader, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:80])
    with pytest.raises(DataError, match=r"broken\.png: "):
        grader.grade([files[0], tmp_path / "broken.png"])
    with pytest.raises(DataError, match=r"samples from 4: .*NaN"):
        grader.grade([*X[:6], X[0] * float("nan")], batch_size=4)
    with pytest.raises(DataError, match=r"inputs: expected samples of one shape"):
        grader.grade([X[0], X[0, :, :20]])
    for empty in ([], DataLoader([])):
        with pytest.raises(DataError, match="inputs: expected at least one"):
            grader.grade(empty)


# texts

QUESTIONS = [text for text, _ in hf_folders.QUESTIONS][:9]


@pytest.fixture(scope="module")
def reader() -> tuple[Grader, Any]:
    """Of questions, with its tokenizer in memory."""
    tokenizer = hf_folders.word_tokenizer()
    model = hf_folders.bert()
    adapted = randomise(attach_adapter(model, {"classifier": 2}))
    return Grader(adapted, Threshold(0.0, "by hand"), processor=as_processor(tokenizer, model)), tokenizer


def test_texts_are_graded_as_their_tokens(reader: tuple[Grader, Any], tmp_path: Path) -> None:
    grader, tokenizer = reader
    expected = grader.grade(dict(tokenizer(QUESTIONS, return_tensors="pt", padding=True))).suspicion
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in QUESTIONS))
    loader: Any = DataLoader([(text, 0) for text in QUESTIONS], 4)  # type: ignore[arg-type]
    tokens = [dict(tokenizer(text)) for text in QUESTIONS]
    rows = {name: [each[name] for each in tokens] for name in tokens[0]}
    for given in (
        QUESTIONS,
        np.array(QUESTIONS),
        tuple(QUESTIONS),
        loader,
        tmp_path / "texts.jsonl",
        str(tmp_path / "texts.jsonl"),
        Table(text=QUESTIONS, label=[0] * 9),
        Table(question=QUESTIONS, idx=list(range(9))),
        Table(text=QUESTIONS, labels=[0] * 9, **rows),
    ):
        np.testing.assert_allclose(grader.grade(given, batch_size=4).suspicion, expected, atol=1e-5)
    np.testing.assert_allclose(grader.grade(QUESTIONS[4]).suspicion, expected[4:5], atol=1e-5)
    one = {name: values[0] for name, values in tokenizer(QUESTIONS[4], return_tensors="pt").items()}
    np.testing.assert_allclose(grader.grade(one).suspicion, expected[4:5], atol=1e-5)


def test_texts_without_a_tokenizer_ask_for_it(reader: tuple[Grader, Any]) -> None:
    grader = Grader(reader[0].adapted, reader[0].threshold)
    for given in (QUESTIONS, QUESTIONS[0], Table(text=QUESTIONS)):
        with pytest.raises(ArgumentError, match=r"^processor: expected a tokenizer"):
            grader.grade(given)


def test_the_tokenizer_of_the_user_stays_as_it_is() -> None:
    tokenizer = hf_folders.word_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    tokenizer(QUESTIONS, padding=True, truncation=True, max_length=5)
    used = tokenizer.backend_tokenizer.to_str()
    assert used != before
    found = as_processor(tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == used
    assert found.fingerprint == as_processor(hf_folders.word_tokenizer()).fingerprint
    assert as_processor(found) is found
    with pytest.raises(ArgumentError, match=r"^processor: "):
        as_processor(Tensor())
