"""The same end-to-end test for every kind of network: nothing in petm knows any of them."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import petm
from networks import randomise, snapshot
from petm.adapter.model import attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.prefix_features import FeatureStudent, cached_features
from petm.data.base import Data, as_data
from petm.data.fields import Fields, concatenate
from petm.errors import ArgumentError
from petm.models.loading import call_model
from petm.models.paper import PaperCNN
from petm.models.prediction import predict_logits
from petm.models.scores import mean_of_both
from petm.selective.targets import Recall
from petm.training.recipes import Recipe

CLASSES = 4


class Bottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.reduce, self.middle, self.expand = (
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.Conv2d(inner, channels, 1, bias=False),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (inner, inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.reduce(x)))
        y = F.relu(self.norms[1](self.middle(y)))
        return F.relu(x + self.norms[2](self.expand(y)))


class BottleneckNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.layers = nn.Sequential(Bottleneck(16), Bottleneck(16), Bottleneck(16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(F.relu(self.stem(x))).mean((2, 3)))


class DepthwiseBlock(nn.Module):
    """As in ConvNeXt: a depthwise convolution, LayerNorm over channels, two pointwise linear layers, a scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.scale = nn.LayerNorm(channels), nn.Parameter(torch.full((channels,), 0.1))
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.scale * self.down(F.gelu(self.up(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class DepthwiseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks, self.head = nn.Sequential(DepthwiseBlock(16), DepthwiseBlock(16)), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x)).mean((2, 3)))


class SignalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(2, 8, 5, stride=2), nn.ReLU(), nn.Conv1d(8, 16, 5, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolutions(x).mean(2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 16, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x.transpose(1, 2))
        return self.head(F.relu(self.hidden(states[:, -1])))


class Frozen(nn.Module):
    """BatchNorm as others freeze it: buffers, and no module of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 16), nn.Linear(16, CLASSES)
        self.register_buffer("mean", torch.linspace(-1, 1, 8))
        self.register_buffer("scale", torch.linspace(0.5, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.conv(x) - self.mean.view(-1, 1, 1)) * self.scale.view(-1, 1, 1)
        return self.head(F.relu(self.fc(x.mean((2, 3)))))


def resnet9() -> nn.Module:
    root = os.environ.get("PETM_DATA_DIR")
    path = Path(root or ".") / ".." / "models" / "resnet9.py"
    if root is None or not path.is_file():
        pytest.skip("PETM_DATA_DIR is not set: the residual network for CIFAR-10 lies beside that folder")
    spec = importlib.util.spec_from_file_location("resnet9", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ResNet9(width=4, classes=CLASSES)  # type: ignore[no-any-return]


def hub(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    """A classifier of transformers with random weights."""
    return lambda: getattr(transformers, f"{kind}")(
        getattr(transformers, kind.split("For")[0] + "Config")(num_labels=CLASSES, **settings)
    )


SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def pictures(n: int) -> Tensor:
    return drawn(n, 3, 32, 32)


def texts(n: int) -> Fields:
    """Token numbers 1 to 29, padded with 0 behind lengths from 3 to 12."""
    lengths = 3 + torch.arange(n) % 10
    mask = (torch.arange(12) < lengths[:, None]).long()
    return Fields({"input_ids": (1 + 29 * drawn(n, 12)).long() * mask, "attention_mask": mask})


TEXT = {"vocab_size": 30, "max_position_embeddings": 40, "pad_token_id": 0}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "paper CNN": (lambda: PaperCNN(CLASSES), lambda n: drawn(n, 1, 28, 28)),
    "ResNet9": (resnet9, pictures),
    "bottlenecks": (BottleneckNet, pictures),
    "depthwise": (DepthwiseNet, pictures),
    "frozen BatchNorm": (Frozen, pictures),
    "MLP": (lambda: nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
            lambda n: drawn(n, 7)),
    "signals": (SignalNet, lambda n: drawn(n, 2, 50)),
    "LSTM": (Recurrent, lambda n: drawn(n, 2, 20)),
    "half precision": (lambda: BottleneckNet().to(torch.bfloat16), pictures),
    "ViT": (hub("ViTForImageClassification", image_size=32, patch_size=8, **SIZES), pictures),
    "BERT": (hub("BertForSequenceClassification", **SIZES, **TEXT), texts),
    "RoBERTa": (hub("RobertaForSequenceClassification", **SIZES, **TEXT), texts),
    "DistilBERT": (hub("DistilBertForSequenceClassification", dim=16, n_layers=3, n_heads=2, hidden_dim=32, **TEXT),
                   texts),
    "GPT-2": (hub("GPT2ForSequenceClassification", n_embd=16, n_layer=3, n_head=2, vocab_size=30, pad_token_id=0),
              texts),
}  # fmt: skip


@pytest.fixture(params=NETWORKS.values(), ids=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Data]:
    """The base model with random weights, and 160 samples, of which it gets some wrong."""
    make, inputs = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    x = inputs(160)
    answers = predict_logits(model, as_data((x, torch.zeros(160)))).argmax(1)
    labels = torch.where(torch.arange(160) % 5 > 0, answers, (answers + 1) % CLASSES)
    labels[:CLASSES] = labels[80 : 80 + CLASSES] = torch.arange(CLASSES)
    return model, as_data((x, labels))


def test_any_network_from_fit_to_grade(case: tuple[nn.Module, Data], tmp_path: Path) -> None:
    model, samples = case
    train, data = samples.subset(range(80, 160)), samples.subset(range(80))
    x, before = data.inputs(range(24)), snapshot(model)
    recipe = Recipe("an adapter", epsilon=0.1, max_ratio=1.9, epochs=2, max_extra_parameters=0.5)
    told: dict[str, Any] = {"recipe": recipe, "target": Recall(0.8), "device": "cpu"}
    grader = petm.fit(
        model, train, calibration=data, force=True, **told
    )  # an untrained model may be no better than guessing
    assert snapshot(model) == before, "A keeps every bit"
    adapted, grades = grader.adapted, grader.grade(data)
    flagged = grades.suspicion[grades.labels != data.labels.numpy()] >= grader.threshold.value
    assert flagged.mean() >= 0.8, "of the errors that it was calibrated on, the asked share is flagged"
    assert torch.equal(adapted(x, alpha=0.0), call_model(model, x)), "alpha 0 is the model to the bit"
    assert adapted.ranks
    # One pass is two passes, with an adapter that matters.
    changed = randomise(adapted, scale=0.3)
    one = dual_logits(changed, x)
    eps = torch.finfo(one.base.dtype).eps
    scale = float(one.base.abs().max())
    with torch.no_grad():
        apart = changed(x, alpha=0.0), changed(x, alpha=1.0)
    for found, expected in zip(one, apart, strict=True):
        torch.testing.assert_close(found.float(), expected.float(), rtol=50 * eps, atol=50 * eps * max(1.0, scale))
    assert not torch.equal(one.base, one.second)
    # Saved and loaded it grades alike.
    grader.save(tmp_path / "any.petm")
    grades, again = grader.grade(data), petm.load(tmp_path / "any.petm", model).grade(data)
    assert np.array_equal(grades.labels, predict_logits(model, data).argmax(1).numpy())
    assert np.array_equal(grades.suspicion, again.suspicion)
    assert np.array_equal(grades.trusted, again.trusted)


TEXTS = [name for name, (_, inputs) in NETWORKS.items() if inputs is texts]


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_moved_where_it_has_become_numbers(name: str) -> None:
    make, inputs = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    x = inputs(20)
    data = as_data((x, predict_logits(model, as_data((x, torch.zeros(20)))).argmax(1)))
    every = petm.ErrorSet(torch.arange(20), data.labels, 20)
    plain = F.cross_entropy(predict_logits(model, data), data.labels)
    moved = {
        way: predict_logits(model, petm.replace_errors(model, data, every, epsilon=0.3, direction=way))
        for way in ("gradient", "random")
    }
    losses = {way: F.cross_entropy(logits, data.labels) for way, logits in moved.items()}
    assert losses["gradient"] > plain
    assert losses["gradient"] > losses["random"]
    still = petm.replace_errors(model, data, every, epsilon=0.0)
    assert torch.equal(predict_logits(model, still), predict_logits(model, data))


def test_a_perturbation_is_the_step_of_fgsm_in_embedding_space() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS["BERT"][0]().eval()
    x, labels = texts(6), torch.arange(6) % CLASSES
    embedding: Any = model.get_submodule("bert.embeddings.word_embeddings")
    vectors = embedding(x["input_ids"]).detach().requires_grad_()
    loss = F.cross_entropy(
        model(inputs_embeds=vectors, attention_mask=x["attention_mask"]).logits, labels, reduction="sum"
    )
    (gradient,) = torch.autograd.grad(loss, vectors)
    expected = vectors.detach() + 0.2 * vectors.detach().std() * gradient.sign()
    wanted = model(inputs_embeds=expected, attention_mask=x["attention_mask"]).logits
    data = as_data((x, labels))
    replaced = petm.replace_errors(model, data, petm.ErrorSet(torch.arange(6), labels, 6), epsilon=0.2)
    torch.testing.assert_close(predict_logits(model, replaced), wanted, rtol=0, atol=1e-3)  # steps are held in float16
    named = petm.replace_errors(
        model, data, petm.ErrorSet(torch.arange(6), labels, 6), epsilon=0.2, at="bert.embeddings.word_embeddings"
    )
    assert named.content == replaced.content


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("bert.nothing", "at:"),
        ("bert.pooler.activation", None),
        ("bert.encoder", "at:"),
    ],
)
def test_where_text_may_be_moved(at: str, message: str | None) -> None:
    model = NETWORKS["BERT"][0]().eval()
    data = as_data((texts(4), torch.arange(4)))
    errors = petm.ErrorSet(torch.arange(4), data.labels, 4)
    if message is None:
        replaced = petm.replace_errors(model, data, errors, epsilon=0.2, at=at)
        assert not torch.equal(predict_logits(model, replaced), predict_logits(model, data))
        return
    with pytest.raises(ArgumentError, match=message):
        petm.replace_errors(model, data, errors, epsilon=0.2, at=at)


def test_a_network_without_embedding_is_told_to_name_a_module() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, numbers: Tensor) -> Tensor:
            return self.head(numbers)

    data = as_data(({"numbers": drawn(4, 3)}, torch.arange(4) % 2))
    errors = petm.ErrorSet(torch.arange(4), data.labels, 4)
    with pytest.raises(ArgumentError, match=r"at: "):
        petm.replace_errors(Sums(), data, errors, epsilon=0.2)


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (Recurrent, "lstm", "expected linear, convolution or embedding modules, got 'lstm'"),
        (DepthwiseNet, "blocks.0.depthwise", "expected a multiple of 16 as rank of the grouped convolution"),
        (lambda: Shared(), "first", "got 'first', a layer under several names"),
        (lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 2)), "0", "with a greatest norm"),
    ],
)
def test_layers_that_cannot_be_adapted_are_named(make: Callable[[], nn.Module], layer: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        attach_adapter(make(), {layer: 1})


class Shared(nn.Module):
    """One layer that is called under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second, self.head = self.first, nn.Linear(4, 2)


KINDS: list[tuple[str, str, dict[str, int]]] = [
    ("GPT-2", "transformers' Conv1D", {"transformer.h.2.mlp.c_fc": 3}),
    ("BERT", "an embedding", {"bert.embeddings.word_embeddings": 3}),
    ("signals", "a convolution of signals", {"convolutions.2": 3}),
]


@pytest.mark.parametrize(("name", "kind", "layers"), KINDS, ids=[kind for _, kind, _ in KINDS])
def test_every_kind_of_layer_is_w0_plus_alpha_b_a(name: str, kind: str, layers: dict[str, int]) -> None:
    """The same as with W0 + alpha B A in the layer's weight itself."""
    make, inputs = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    x = inputs(6)
    adapted = randomise(attach_adapter(model, layers), scale=0.3)
    ((layer, _),) = layers.items()
    weight = model.get_parameter(f"{layer}.weight")
    A, B = adapted.adapter_state().values()
    delta = torch.einsum("or,r...->o...", B.flatten(1), A)
    if kind != "a convolution of signals":  # their weights are transposed
        delta = delta.T
    assert delta.shape == weight.shape
    for alpha in (0.5, 1.0):
        with torch.no_grad():
            answered = adapted(x, alpha=alpha)
            weight += alpha * delta
            expected = call_model(model, x)
            weight -= alpha * delta
        torch.testing.assert_close(answered, expected, rtol=1e-4, atol=1e-4)


def test_batches_of_several_tensors_are_given_by_name() -> None:
    make, inputs = NETWORKS["BERT"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    x = inputs(8)
    adapted = randomise(attach_adapter(model, {"classifier": 2}))
    by_batch, by_mapping = dual_logits(adapted, x), dual_logits(adapted, dict(x.items()))
    assert torch.equal(by_batch.second, by_mapping.second)
    with torch.no_grad():
        assert torch.equal(adapted(**x), adapted(x))
    assert len(concatenate([x[:3], x[3:]])) == 8
    grader = petm.fit_grader(adapted, as_data((x, torch.arange(8) % CLASSES)), target=Recall(0.5))
    both = mean_of_both(by_batch.base, by_batch.second).numpy()
    assert np.allclose(grader.grade(dict(x.items())).suspicion, both)
    with pytest.raises(ArgumentError, match=r"inputs: "):
        dual_logits(adapted, [1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ViT", {"vit.layers.2.mlp.fc1": 2, "classifier": 2}),
        ("BERT", {"bert.encoder.layer.2.intermediate.dense": 2, "classifier": 2}),
        ("BERT", {"bert.encoder.layer.1.attention.self.query": 2, "classifier": 2}),
        ("RoBERTa", {"roberta.encoder.layer.2.output.dense": 2}),
        ("DistilBERT", {"distilbert.transformer.layer.1.attention.q_lin": 2}),
    ],
)
def test_late_layers_of_transformers_learn_on_features(
    name: str, layers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and skip connections that go round the split point are put in their place too."""
    monkeypatch.setattr("petm.adapter.prefix_features.LEAST_OPERATIONS", 0)
    make, inputs = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    adapted, data = randomise(attach_adapter(model, layers), scale=0.3), as_data((inputs(40), torch.zeros(40)))
    with cached_features(adapted, data, budget=1 << 26) as (student, rows):
        assert isinstance(student, FeatureStudent)
        found = predict_logits(student, rows)
        with torch.no_grad():
            torch.testing.assert_close(found, adapted(data.inputs(range(40))), rtol=1e-4, atol=1e-5)
