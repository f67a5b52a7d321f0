"""``petm fit`` and ``petm grade`` on Hugging Face folders: texts and images, and what is refused."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import hf_folders
from petm.cli import main
from petm.cli.graders import prepares
from petm.data.texts import Tokenized, read_texts
from petm.errors import BundleError
from petm.grading.manifest import read_manifest
from petm.models.hf_classifier import load_classifier
from petm.models.hf_processors import ImageProcessor, load_processor
from petm.models.hf_tokenizer import Tokenizer, ask
from petm.models.label_words import LabelWords
from petm.models.loading import load_model
from petm.models.prompt import Prompt
from petm.serving.limits import Limits, Unreadable
from petm.serving.reading import reader_for

Petm = Callable[..., tuple[int, str, str]]

NO_ERRORS = pytest.mark.filterwarnings("ignore:calibration. expected some errors")


@pytest.fixture
def petm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Petm:
    """Runs ``petm ...`` and returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        prepares.cache_clear()  # a command is a process of its own
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with classifiers that have learnt a little, and data in every format."""
    root = tmp_path_factory.mktemp("folders")
    write_texts(root / "train.csv", hf_folders.QUESTIONS)
    hf_folders.save(root / "bert", hf_folders.bert(), hf_folders.word_tokenizer())
    model, encoder = load_classifier(root / "bert"), load_processor(root / "bert")
    assert isinstance(encoder, Tokenizer)
    data = Tokenized(read_texts(root / "train.csv", classes=hf_folders.KINDS), encoder)
    hf_folders.train(model, data.inputs(range(0, len(data), 2)), data.labels[::2])
    hf_folders.save(root / "bert", model)

    write_images(root / "images", 20)
    hf_folders.save(root / "vit", hf_folders.vit(), hf_folders.image_processor())
    return root


@pytest.fixture
def place(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that, to work in."""
    monkeypatch.chdir(shutil.copytree(folders, tmp_path / "place"))
    return tmp_path / "place"


def write_texts(path: Path, rows: Any, *columns: str) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns or ("text", "label"), *rows])


def write_images(folder: Path, each: int) -> None:
    generator = np.random.default_rng(0)
    for shade, name in enumerate(hf_folders.KINDS):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(60 * shade, 60 * shade + 130, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")


def fit(*more: object) -> tuple[object, ...]:
    return ("fit", "--data", "train.csv", "-o", "my.petm", "--seed", 1, *more)


@NO_ERRORS
def test_texts_from_fit_to_grade(place: Path, petm: Petm) -> None:
    code, out, err = petm(*fit("--model", "hf:bert", "--json"))
    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["inputs"] == {
        "size": None, "channels": None, "processor": "bert", "text_column": "text", "length": None,
        "fingerprint": load_processor("bert").fingerprint, "resize": None, "mean": [], "std": [], "profile": None,
        "base": None, "prompt": None, "pair_column": None,
    }  # fmt: skip
    assert (manifest["model"]["reference"], manifest["model"]["classes"]) == ("hf:bert", list(hf_folders.KINDS))

    more = [("Who met Galileo ?",), ("How far is it from Rome to Cairo ?",), ("Where is it ?",)]
    write_texts(place / "more.csv", more, "text")
    (place / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for (text,) in more))
    code, out, err = petm("grade", "my.petm", "more.csv", "more.jsonl")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert [(row["input"], int(row["row"])) for row in rows] == [("more.csv", n) for n in (2, 3, 4)] + [
        ("more.jsonl", n) for n in (1, 2, 3)
    ]
    encoded = hf_folders.word_tokenizer()([text for (text,) in more], padding=True, return_tensors="pt")
    answers = load_classifier("bert")(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    assert [row["label_name"] for row in rows] == [hf_folders.KINDS[label] for label in answers.argmax(1)] * 2
    assert {row["grade"] for row in rows} <= {"trusted", "suspect"}
    for one, other in zip(rows[:3], rows[3:], strict=True):
        assert {**one, "input": "", "row": ""} == {**other, "input": "", "row": ""}

    (place / "bert").rename(place / "moved")
    code, _, err = petm("grade", "my.petm", "more.csv")
    assert code == 1
    assert err.startswith("Error: --model: expected the folder of a Hugging Face model, got bert, which does not exist")
    code, again, err = petm("grade", "my.petm", "more.csv", "more.jsonl", "--model", "hf:moved")
    assert (code, again) == (0, out), err


def test_pairs_of_texts_are_encoded_as_the_tokenizer_does(place: Path, petm: Petm) -> None:
    pairs = [(text, other, kind) for (text, kind), (other, _) in pairwise(hf_folders.QUESTIONS)]
    write_texts(place / "train.csv", pairs, "premise", "hypothesis", "label")
    tokenizer = hf_folders.word_tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    hf_folders.save(place / "bert", tokenizer)
    both = ("--text-column", "premise", "--text-column", "hypothesis")
    told = ("--force", "--json", "--recipe", "softmax", "--coverage", 0.9)
    code, out, err = petm(*fit("--model", "hf:bert", *told, *both))
    assert code == 0, err
    inputs = json.loads(out)["inputs"]
    assert (inputs["text_column"], inputs["pair_column"]) == ("premise", "hypothesis")
    assert inputs["fingerprint"] != load_processor("bert").fingerprint, "another column is another input"

    write_texts(place / "more.csv", [pair[:2] for pair in pairs[::9]], "premise", "hypothesis")
    code, out, err = petm("grade", "my.petm", "more.csv")
    assert code == 0, err
    model = load_classifier("bert")
    for row, (premise, hypothesis, _) in zip(csv.DictReader(out.splitlines()), pairs[::9], strict=True):
        encoded = tokenizer(premise, hypothesis, return_tensors="pt")
        assert encoded["token_type_ids"].max() == 1
        with torch.no_grad():
            expected = model(**encoded).logits.softmax(1).max()
        assert float(row["suspicion"]) == pytest.approx(1 - float(expected), abs=1e-5)

    write_texts(place / "more.csv", [("Where is Paris ?",)], "premise")
    code, _, err = petm("grade", "my.petm", "more.csv")
    assert code == 1
    assert err.startswith("Error: more.csv: expected a column 'hypothesis', got the columns premise")
    assert petm(*fit("--model", "hf:bert", "--overwrite", *both, "--text-column", "third"))[0] == 2


@NO_ERRORS
def test_other_columns_a_fixed_length_and_blank_texts(place: Path, petm: Petm) -> None:
    rows = [(kind, text) for text, kind in hf_folders.QUESTIONS]
    write_texts(place / "train.csv", [*rows, ("PLACE", " ")], "kind", "question")
    options = ("--model", "hf:bert", "--text-column", "question", "--label-column", "kind", "--length", 9)
    code, _, err = petm(*fit(*options))
    assert code == 1
    assert f"train.csv:{len(rows) + 2}: expected a text in column 'question', got nothing." in err
    code, out, err = petm(*fit(*options, "--skip-bad", "--json"))
    assert code == 0, err
    assert "train.csv: 1 left out, 90 remain." in err
    manifest = json.loads(out)
    assert (manifest["inputs"]["text_column"], manifest["inputs"]["length"]) == ("question", 9)
    write_texts(place / "more.csv", [("Where is Paris ? " * 9,)], "question")
    assert petm("grade", "my.petm", "more.csv")[0] == 0
    write_texts(place / "more.csv", [("Where is Paris ?",)], "text")
    code, _, err = petm("grade", "my.petm", "more.csv")
    assert code == 1
    assert err.startswith("Error: more.csv: expected a column 'question', got the columns text.")
    assert "--text-column" in err


def test_images_from_fit_to_grade(place: Path, petm: Petm) -> None:
    code, out, err = petm("fit", "--model", "hf:vit", "--data", "images", "-o", "my.petm", "--json", "--force")
    assert code == 0, err
    assert json.loads(out)["inputs"]["processor"] == "vit"
    code, out, err = petm("grade", "my.petm", "images")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    processor = load_processor("vit")
    assert isinstance(processor, ImageProcessor)
    pixels = np.stack([processor.prepare(Image.open(row["input"])) for row in rows])
    assert pixels.min() < -0.5, "normalised by the processor, not from 0 to 1"
    answers = load_classifier("vit")(pixel_values=torch.from_numpy(pixels)).logits
    assert [row["label_name"] for row in rows] == [hf_folders.KINDS[label] for label in answers.argmax(1)]


NETWORK = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden, self.head = nn.Embedding(64, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask, **_):
        kept = attention_mask.unsqueeze(-1).float()
        mean = (self.embedding(input_ids) * kept).sum(1) / kept.sum(1)
        return self.head(torch.relu(self.hidden(mean)))
"""
"""A text classifier of one's own."""


def test_a_users_network_with_a_tokenizer_folder(place: Path, petm: Petm) -> None:
    (place / "words.py").write_text(NETWORK)
    hf_folders.save(place / "tokens", hf_folders.word_tokenizer())
    names = ",".join(hf_folders.KINDS)
    told = ("--model", "words.py:Words", "--classes", names)
    code, out, err = petm(*fit(*told, "--processor", "tokens", "--length", 12, "--json", "--force"))
    assert code == 0, err
    assert json.loads(out)["inputs"]["processor"] == "tokens"
    code, out, err = petm("grade", "my.petm", "--model", "words.py:Words", "train.csv")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    encoded = hf_folders.word_tokenizer()(
        [text for text, _ in hf_folders.QUESTIONS],
        padding="max_length",
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )
    model = load_model("words.py:Words")
    answers = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
    assert [row["label_name"] for row in rows] == [hf_folders.KINDS[label] for label in answers.argmax(1)]

    (place / "tokens").rename(place / "moved")
    code, _, err = petm("grade", "my.petm", "--model", "words.py:Words", "train.csv")
    assert (code, err.startswith("Error: --processor: expected")) == (1, True)
    assert petm("grade", "my.petm", "--model", "words.py:Words", "train.csv", "--processor", "moved")[:2] == (0, out)
    hf_folders.save(place / "tokens", hf_folders.word_tokenizer([text for text, _ in hf_folders.QUESTIONS[:30]]))
    code, _, err = petm("grade", "my.petm", "--model", "words.py:Words", "train.csv")
    assert code == 1
    assert "Error: --processor: expected" in err
    code, _, err = petm(*fit(*told, "--processor", "moved", "--size", 8, "--overwrite"))
    assert code == 2
    assert "--size: expected none beside --processor moved, got (8, 8)." in err
    code, _, err = petm("export", "my.petm", "--model", "words.py:Words", "-o", "my.onnx", "--processor", "moved")
    assert (code, err) == (
        1,
        "Error: grader: expected one whose inputs are one tensor, got one of texts. Keep to the bundle.\n",
    )


FAULTS: list[tuple[tuple[str, ...], int, str]] = [
    (("--model", "hf:absent"), 1, "model: expected"),
    (("--model", "hf:vit"), 1, "train.csv: expected a folder"),
    (("--model", "hf:bert", "--text-column", "body"), 1, "train.csv: expected a column 'body'"),
    (("--model", "hf:bert", "--label-column", "kind"), 1, "train.csv: expected a column 'kind'"),
    (("--model", "hf:bert", "--classes", "a,b"), 1, "classes: expected"),
    (("--model", "hf:bert", "--classes", "a,b,c"), 1, "expected the classes a, b, c"),
    (
        ("--model", "hf:bert", "--classes", ",".join(reversed(hf_folders.KINDS))),
        1,
        "classes: expected the order of bert",
    ),
    (("--model", "hf:bert", "--length", "41"), 1, "length: expected"),
    (("--model", "hf:bert", "--size", "8"), 2, "--size: expected"),
    (("--model", "hf:vit", "--channels", "1"), 2, "--channels: expected"),
    (("--model", "hf:vit", "--length", "4"), 2, "--length: expected"),
    (("--model", "networks:TinyCNN", "--text-column", "t"), 2, "--text-column: expected"),
]


@pytest.mark.parametrize(("options", "code", "message"), FAULTS)
def test_bad_options(place: Path, petm: Petm, options: tuple[str, ...], code: int, message: str) -> None:
    got, out, err = petm(*fit(*options))
    assert (got, out) == (code, "")
    assert message in err
    assert code == 2 or len(err.splitlines()) == 1
    assert not list(place.glob("my.petm*"))


def test_class_names_without_a_known_order(place: Path, petm: Petm) -> None:
    unnamed = hf_folders.bert([f"LABEL_{number}" for number in range(4)])
    hf_folders.save(place / "four", unnamed, hf_folders.word_tokenizer())
    code, _, err = petm(*fit("--model", "hf:four"))
    assert code == 1
    assert err.startswith("Error: train.csv: expected the 4 classes of four, got 3: ")
    write_texts(place / "train.csv", [(text, number % 5) for number, (text, _) in enumerate(hf_folders.QUESTIONS)])
    code, _, err = petm(*fit("--model", "hf:four"))
    assert code == 1
    assert "train.csv: expected labels from 0 to 3" in err


def test_custom_code_needs_trust_at_every_command(place: Path, petm: Petm) -> None:
    config = json.loads((place / "bert" / "config.json").read_text())
    (place / "bert" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Config"}}))
    code, _, err = petm(*fit("--model", "hf:bert"))
    assert code == 1
    assert "allow it with --trust-remote-code" in err
    # With trust the name of a class that is not there is looked for, and its absence reported in one line.
    code, _, err = petm(*fit("--model", "hf:bert", "--trust-remote-code"))
    assert code == 1
    assert "expected a model that transformers can read in bert" in err
    assert len(err.splitlines()) == 1


def test_arrays_of_bytes_do_not_suit_an_image_processor(place: Path, petm: Petm) -> None:
    np.savez(place / "bytes.npz", x=np.zeros((4, 3, 16, 16), np.uint8), y=[0, 1, 2, 0])
    code, _, err = petm("fit", "--model", "hf:vit", "--data", "bytes.npz", "-o", "my.petm")
    assert code == 1
    assert "bytes.npz: expected floats as they are prepared for the model, got bytes." in err
    np.savez(place / "large.npz", x=np.zeros((4, 3, 20, 20), np.float32), y=[0, 1, 2, 0])
    code, _, err = petm("fit", "--model", "hf:vit", "--data", "large.npz", "-o", "my.petm")
    assert code == 1
    assert "large.npz: expected images of 3×16×16 (channels × height × width), got 3×20×20" in err


@pytest.mark.filterwarnings("always::petm.errors.PetmWarning")
def test_texts_that_people_have_labelled(place: Path, petm: Petm) -> None:
    assert petm(*fit("--model", "hf:bert"))[0] == 0
    # Two texts of the same tokens, as the model does not know their words; and training texts of another length.
    seen = [(text,) for text, _ in hf_folders.QUESTIONS] + [("Where is Oslo ?",), ("Where is Bergen ?",)]
    write_texts(Path("seen.csv"), seen, "text")
    longer = ("Who was Mozart and who was Lincoln and who was Galileo and who was Madonna ?", "PERSON")
    write_texts(Path("long.csv"), [*hf_folders.QUESTIONS, longer])
    assert petm("grade", "my.petm", "seen.csv", "-o", "grades.csv")[0] == 0
    with open("grades.csv", newline="") as file:
        rows = [(row["input"], row["row"]) for row in csv.DictReader(file)]
    labels = [hf_folders.KINDS.index(kind) for _, kind in hf_folders.QUESTIONS]
    for row in range(0, len(labels), 4):
        labels[row] = (labels[row] + 1) % 3  # errors of the model, in production
    labels += [1, 2]
    told = [(*place_of, label) for place_of, label in zip(rows, labels, strict=True)]
    write_texts(Path("labels.csv"), told, "input", "row", "label")
    budgets = ("--max-extra-parameters", 0.5, "--max-extra-time", 2)
    how = ("--labels", "labels.csv", "--grades", "grades.csv", "-o", "better.petm", "--json")
    Path("bert").rename("moved")
    code, out, err = petm("learn", "my.petm", "--model", "hf:moved", *how, *budgets, "--data", "long.csv")
    assert code == 0, err
    assert "labels: expected one label for each input, got several for 1 of 91" in err
    assert json.loads(out)["labels"] == len(hf_folders.QUESTIONS) + 1
    assert petm("grade", "better.petm", "--model", "hf:moved", "train.csv")[0] == 0


WORDS = ("person", "place", "number")
ASKED = ("--model", "hf:llama", "--label-words", ",".join(WORDS), "--template", "prompt.txt", "--data", "asked.csv")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model that has learnt a little of what a question asks for, and its data."""
    root = tmp_path_factory.mktemp("language")
    (root / "prompt.txt").write_text("{text} ({hint}) asks for a\n\n")
    rows = [(text, f"n{len(text) % 3}", kind.lower()) for text, kind in hf_folders.QUESTIONS]
    write_texts(root / "asked.csv", rows, "text", "hint", "label")
    tokenizer = hf_folders.byte_tokenizer([text for row in rows for text in row])
    hf_folders.save(root / "llama", model := hf_folders.llama(), tokenizer)
    prompt, tokens = ask(root / "llama", Prompt.read(root / "prompt.txt"), WORDS)
    encoder = load_processor(root / "llama", prompt=prompt)
    assert isinstance(encoder, Tokenizer)
    data = Tokenized(read_texts(root / "asked.csv", text_column=("text", "hint"), classes=WORDS), encoder)
    hf_folders.train(LabelWords(model, tokens), data.inputs(range(0, len(data), 3)), data.labels[::3])
    hf_folders.save(root / "llama", model)
    return root


def test_a_language_model_from_fit_to_grade_and_learn(
    language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, petm: Petm
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.chdir(shutil.copytree(language_model, tmp_path / "place"))
    code, out, err = petm("fit", *ASKED, "-o", "my.petm", "--seed", 1, "--json")
    assert code == 0, err
    manifest = json.loads(out)
    prompt = {"lines": ["{text} ({hint}) asks for a", ""], "chat": False, "end": ""}
    assert manifest["inputs"]["prompt"] == prompt
    assert manifest["model"]["classes"] == list(manifest["model"]["arguments"]["label_words"]) == list(WORDS)

    code, out, err = petm("grade", "my.petm", "asked.csv", "-o", "grades.csv")
    assert code == 0, err
    with open("grades.csv", newline="") as file:
        graded = list(csv.DictReader(file))
    whole, tokenizer = hf_folders.llama(), AutoTokenizer.from_pretrained("llama")
    whole.load_state_dict(safetensors.torch.load_file("llama/model.safetensors"), strict=False)
    first = [tokenizer(f"\n{word}")["input_ids"][1] for word in WORDS]
    for (text, _), row in zip(hf_folders.QUESTIONS[:9], graded, strict=False):
        ids = tokenizer(f"{text} (n{len(text) % 3}) asks for a\n", return_tensors="pt")["input_ids"]
        assert row["label_name"] == WORDS[int(whole(input_ids=ids).logits[0, -1, first].argmax())]

    reader = reader_for(
        read_manifest("my.petm").origin.inputs,
        Limits(),
        encoder := prepares("llama", prompt=Prompt.of("{text} ({hint}) asks for a\n")),
    )
    texts = [json.dumps({"text": text, "hint": "n1"}) for text in ("Where is Rome ?", "Who was Mozart in Paris ?")]
    batch = reader.collate([reader.read(text) for text in texts])
    (ids,) = encoder.encode(texts[:1], None)["input_ids"]
    assert tokenizer.decode(ids) == "Where is Rome ? (n1) asks for a\n"
    assert dict(batch.items())["attention_mask"][:, -1].all()
    with pytest.raises(Unreadable, match="hint"):
        reader.read("Where is Rome ?")

    told = [
        (row["input"], row["row"], (WORDS.index(row["label_name"]) + (n % 4 == 0)) % 3) for n, row in enumerate(graded)
    ]
    write_texts(Path("labels.csv"), told, "input", "row", "label")
    budgets = ("--max-extra-parameters", 0.5, "--max-extra-time", 2)
    how = ("--labels", "labels.csv", "--grades", "grades.csv", "-o", "better.petm", "--json")
    code, out, err = petm("learn", "my.petm", *how, *budgets)
    assert code == 0, err
    assert petm("grade", "better.petm", "asked.csv")[0] == 0
    (tmp_path / "place" / "llama").rename("moved")
    assert petm("grade", "better.petm", "asked.csv", "--model", "hf:moved")[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--model", "hf:llama"), 1, "LlamaForCausalLM"),
        (("--model", "hf:llama", "--label-words", "a,b"), 2, "--template"),
        ((*ASKED, "--model", "petm.models:PaperCNN"), 2, "--label-words"),
        ((*ASKED, "--model", "hf:bert"), 1, "BertForSequenceClassification"),
        ((*ASKED, "--label-words", "place,place"), 1, "--label-words: expected"),
        ((*ASKED, "--template", "none.txt"), 1, "template: expected {text}"),
        ((*ASKED, "--template", "other.txt"), 1, "asked.csv: expected a column 'author'"),
        ((*ASKED, "--template", "known.txt"), 1, "template: expected columns"),
        ((*ASKED, "--chat"), 1, "chat: "),
        ((*ASKED, "--length", 3), 1, "template: "),
    ],
)
def test_bad_options_of_a_language_model(
    language_model: Path, monkeypatch: pytest.MonkeyPatch, petm: Petm, options: Any, code: int, message: str
) -> None:
    monkeypatch.chdir(language_model)
    Path("none.txt").write_text("What?")
    Path("known.txt").write_text("{text} {label}")
    Path("other.txt").write_text("{author} wrote: {text}\n\n")
    if not Path("bert").exists():
        hf_folders.save(Path("bert"), hf_folders.bert(), hf_folders.word_tokenizer())
    found, _, err = petm("fit", "--data", "asked.csv", *options, "-o", "my.petm")
    assert found == code, err
    assert message in err
    assert "Traceback" not in err


@NO_ERRORS
def test_a_classifier_of_sounds_is_fitted_and_grades_a_folder(tmp_path: Path, petm: Petm) -> None:
    import wave

    from transformers import Wav2Vec2FeatureExtractor

    from experiments.breadth_models import model_of

    hf_folders.save(tmp_path / "model", model_of("wav2vec2", "AudioClassification"))
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path / "model")
    drawn = np.random.default_rng(0)
    for number in range(36):
        (tmp_path / "sounds" / f"LABEL_{number % 3}").mkdir(parents=True, exist_ok=True)
        with wave.open(str(tmp_path / "sounds" / f"LABEL_{number % 3}" / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(drawn.integers(-9000, 9000, 700 + number, np.int16).tobytes())
    told = ("--model", f"hf:{tmp_path / 'model'}", "--data", tmp_path / "sounds", "-o", tmp_path / "s.petm")
    quick = ("--calibration-from-data", "--force", "--recipe", "softmax,entropy")
    code, _, error = petm("fit", *told, *quick)
    assert (code, error.count("\n")) == (1, 1)
    assert "length: expected the samples to which each sound is padded or cut, at 8,000 a second" in error
    code, _, error = petm("fit", *told, *quick, "--length", 800)
    assert code == 0, error
    manifest = read_manifest(tmp_path / "s.petm")
    assert (manifest.origin.inputs.length, manifest.origin.inputs.text_column) == (800, None)
    (tmp_path / "sounds" / "LABEL_0" / "bad.wav").write_bytes(b"RIFF")
    code, out, error = petm("grade", tmp_path / "s.petm", tmp_path / "sounds")
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 37, error
    assert [row["input"][-7:] for row in rows if row["reason"]] == ["bad.wav"]
    processor = load_processor(tmp_path / "model", length=800)
    assert isinstance(processor, ImageProcessor)
    with pytest.raises(BundleError, match=r"expected one that takes images or texts, got one of sounds"):
        reader_for(manifest.origin.inputs, Limits(), processor)
