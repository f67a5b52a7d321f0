"""Which classifiers petm takes: tiny random models of every kind, each from fit through a bundle to equal grades.

Every classifier of transformers that has a small form is written to a folder and read from there, with a tokenizer
where it takes texts; networks of one's own come from their factory. Each is fitted with an adapter on a few samples,
grades, is saved, loaded and grades again, and is exported where it takes images. A refusal is a `PetmError`; anything
else that ends a form early is a failure.

    python -m experiments.breadth -o runs/breadth.json

A second run goes on where the first ended; ``--again`` repeats the forms that did not pass.
"""

import argparse
import json
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import petm
from experiments.breadth_models import LENGTH, PICTURE, TASKS, WAVE, WORDS, kinds, model_of
from experiments.breadth_networks import NETWORKS
from petm._internal.files import write_json
from petm.data.base import Data, as_data
from petm.data.fields import Fields, Inputs
from petm.data.texts import Tokenized, read_texts
from petm.errors import PetmError
from petm.grading.onnx_export import export_onnx
from petm.models.hf_folder import quiet
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer
from petm.models.loading import call_model, weights_fingerprint
from petm.models.prediction import predict_logits
from petm.models.probe import probe
from petm.selective.targets import Recall
from petm.training.recipes import Recipe

SAMPLES, HELD_OUT = 72, 32
RECIPE = Recipe("an adapter", epsilon=0.1, max_ratio=1.9, epochs=1, max_extra_parameters=0.5)
_MOST_SECONDS = 60
_TOO_LARGE = frozenset(
    {"cohere_compass_text", "esmc", "mistral4", "modernvbert", "roc_bert", "shieldgemma2", "t5gemma2", "ultravbert"}
    | {"zamba", "zamba2", "qwen3_5", "qwen3_5_text", "qwen3_next"}
)
"""Kinds of which the entries of a configuration give no small model, or none that is quick without a GPU."""
_SHAPES = {"audio-spectrogram-transformer": (64, 16), "wav2vec2-bert": (20, 160), "whisper": (16, 128)}
"""Frames and values of spectrograms, where the input is no wave."""


@dataclass(frozen=True)
class Form:
    """One kind of model.

    Attributes:
        name: Its name in the results.
        make: Returns the model with random weights.
        inputs: Returns ``n`` inputs; None for texts, which the folder's tokenizer makes.
        folder: Whether the model goes through a folder of Hugging Face.
        images: Whether it takes images, and is exported.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs] | None
    folder: bool
    images: bool


def forms() -> dict[str, Form]:
    """Returns all forms by name: the kinds of transformers by task, then networks of one's own."""
    made = dict[str, Form]()
    for task in TASKS:
        for kind in kinds(task):
            if kind not in _TOO_LARGE:
                name = f"{task.removesuffix('Classification').lower()} {kind}"
                make = _maker(kind, task)
                made[name] = Form(name, make, _inputs_of(kind, task), True, task == "ImageClassification")
    for name, (build, shape) in NETWORKS.items():
        made[f"own {name}"] = Form(f"own {name}", _seeded(build), _drawer(shape), False, _is_image(shape))
    return made


def _maker(kind: str, task: str) -> Callable[[], nn.Module]:
    return lambda: model_of(kind, task)


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().eval()

    return make


def _is_image(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 3


def _drawer(shape: Any) -> Callable[[int], Inputs]:
    def draw(n: int) -> Inputs:
        if isinstance(shape, tuple):
            return _drawn(n, *shape)
        parts = {name: _drawn(n, *each) for name, each in shape.items()}
        return Fields({name: (40 * part).long() if name == "input_ids" else part for name, part in parts.items()})

    return draw


def _inputs_of(kind: str, task: str) -> Callable[[int], Inputs] | None:
    if task == "SequenceClassification":
        return None
    if task == "ImageClassification":
        return _drawer(PICTURE)
    shape = _SHAPES.get(kind, (WAVE,))
    return lambda n: 2 * _drawn(n, *shape) - 1


def _drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def check(form: Form, folder: Path, *, export: bool = True) -> dict[str, Any]:
    """Returns figures of a form that passed; raises AssertionError where a promise is broken, else what stops it.

    Args:
        form: The form.
        folder: An empty folder for the model, the texts and the bundle.
        export: Whether to export what takes images.
    """
    model = form.make()
    place: str | None = None
    if form.folder:
        place = f"hf:{folder / 'model'}"
        kept: Any = model
        with quiet():
            kept.save_pretrained(folder / "model")
            if form.inputs is None:
                _tokenizer().save_pretrained(folder / "model")
        model = petm.load_model(place)
    samples = _samples(form, model, folder)
    train, data = samples.subset(range(HELD_OUT, SAMPLES)), samples.subset(range(HELD_OUT))
    before = weights_fingerprint(model)
    grader = petm.fit(
        model, train, calibration=data, recipe=RECIPE, target=Recall(0.8), device="cpu", force=True
    )  # an untrained model may be no better than guessing
    assert weights_fingerprint(model) == before, "the fit has changed the model"
    x = data.inputs(range(8))
    with torch.no_grad():
        assert torch.equal(grader.adapted(x, alpha=0.0), call_model(model, x)), "alpha 0 is not the model"
    grades = grader.grade(data)
    assert np.array_equal(grades.labels, predict_logits(model, data).argmax(1).numpy()), "grades have other labels"
    grader.save(folder / "form.petm")
    again = petm.load(folder / "form.petm", place or form.make()).grade(data)
    for name in ("labels", "suspicion", "trusted", "probability_of_error"):
        assert np.array_equal(getattr(grades, name), getattr(again, name)), f"loaded, {name} differs"
    found: dict[str, Any] = {"parameters": sum(each.numel() for each in model.parameters())}
    found["split_point"] = grader.adapted.split_point.kind if grader.adapted.split_point else "none"
    if export and form.images and isinstance(x, Tensor):
        try:
            found["onnx"] = export_onnx(grader, folder / "form.onnx", x).difference
        except PetmError as error:
            found["onnx"] = str(error)
    return found


def _samples(form: Form, model: nn.Module, folder: Path) -> Data:
    """Inputs with the model's own answers as labels, but one in five wrong; each class is there."""
    if form.inputs is None:
        words = (4 + (WORDS - 4) * _drawn(SAMPLES, LENGTH)).long()
        lines = [" ".join(f"w{word}" for word in row[: 3 + place % 8]) for place, row in enumerate(words.tolist())]
        (folder / "texts.csv").write_text("\n".join(["text,label", *(f"{line},0" for line in lines)]) + "\n")
        encoder = load_processor(folder / "model")
        assert isinstance(encoder, Tokenizer)
        texts = Tokenized(read_texts(folder / "texts.csv", label_column=None), encoder)
        x: Inputs = texts.inputs(range(SAMPLES))
    else:
        x = form.inputs(SAMPLES)
    data = as_data((x, torch.zeros(SAMPLES)))
    probe(model, data)
    answers = predict_logits(model, data)
    classes = answers.shape[1]
    labels = torch.where(torch.arange(SAMPLES) % 5 > 0, answers.argmax(1), (answers.argmax(1) + 1) % classes)
    labels[:classes] = labels[HELD_OUT : HELD_OUT + classes] = torch.arange(classes)
    return as_data((x, labels))


def _tokenizer() -> Any:
    """A tokenizer by words: token 2 begins a text and 3 ends it, 0 pads."""
    from tokenizers import Tokenizer as Words
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    known = dict.fromkeys((*names, *(f"w{number}" for number in range(4, WORDS))))
    words: Any = Words(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    told = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), names, strict=True))
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words, eos_token="[SEP]", **told)


def outcome(form: Form) -> dict[str, Any]:
    """Returns what becomes of a form: ``passed``, ``refused``, ``failed``, or ``absent`` where a library is missing."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _at_most(_MOST_SECONDS):
        warnings.simplefilter("ignore")
        try:
            found: dict[str, Any] = {"result": "passed", **check(form, Path(folder))}
            if isinstance(found.get("onnx"), str) and "Traceback" in found["onnx"]:
                found["result"] = "failed"
        except PetmError as error:
            found = {"result": "refused", "cause": str(error).replace(folder, "DIR")}
        except ImportError as error:
            found = {"result": "absent", "cause": f"{form.name} needs a library that is not installed: {error.name}"}
        except (Exception, TooLongError) as error:
            reason = next(iter(str(error).splitlines()), "")
            found = {"result": "failed", "cause": f"{type(error).__name__}: {reason}"}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


class TooLongError(BaseException):
    """A form takes too long; no Exception, as trials of a model go on behind any of these."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Ends a block after so many seconds of the processor."""

    def stop(*_: object) -> None:
        raise TooLongError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/breadth.json"))
    parser.add_argument("--again", action="store_true", help="repeat the forms that did not pass")
    parser.add_argument("names", nargs="*", help="forms, or the beginnings of their names; absent: all")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name, form in forms().items():
        if arguments.names and not name.startswith(tuple(arguments.names)):
            continue
        if name in results and not (arguments.again and results[name]["result"] != "passed"):
            continue
        results[name] = outcome(form)
        told = results[name].get("cause") or results[name].get("onnx", "")
        print(f"{results[name]['result']:<7} {name} ({results[name]['seconds']} s) {told}", flush=True)
        write_json(arguments.output, results)
    print(dict(Counter(each["result"] for each in results.values())))


if __name__ == "__main__":
    main()
