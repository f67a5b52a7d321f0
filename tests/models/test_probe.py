"""Models that do not do what is assumed: each gets the right grades, or is refused in one line with the cause."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import petm
from hf_folders import bert, gpt2
from networks import TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData, as_data
from petm.data.fields import Fields
from petm.errors import ArgumentError, ModelError, PetmError, PetmWarning
from petm.models.answers import reading_of
from petm.models.loading import call_model
from petm.models.prediction import predict_logits
from petm.models.probe import probe
from petm.selective.targets import Recall
from petm.training.recipes import Recipe

SHORT: dict[str, Any] = {
    "recipe": Recipe("a short one", epsilon=0.1, max_ratio=1.9, epochs=1, max_extra_parameters=0.5),
    "target": Recall(0.8),
    "device": "cpu",
}


class Around(nn.Module):
    """A network, and what becomes of its input and of its logits."""

    def __init__(self, network: nn.Module, after: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.network, self.after = network, after or (lambda logits: logits)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.network(x))


class DropoutAlwaysOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class BatchStatistics(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=True)


class Centred(nn.Module):
    """Subtracts a constant from its input, in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.1)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


@pytest.fixture
def short(digits: tuple[Data, ...]) -> tuple[Data, Data, Data]:
    return digits[0].subset(range(300)), digits[1], digits[2].subset(range(150))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (DropoutAlwaysOn(), r"equal answers to equal inputs, got others each time from network\.0 \(DropoutAlwaysOn\)"),
        (BatchStatistics(1), r"depends on its sample alone, .* from network\.0 \(BatchStatistics\)"),
        (Counts(), r"stays as it is in eval mode, got one that changes network\.0\.calls"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_no_grade_could_be_right_for(
    model: nn.Module, short: tuple[Data, ...], part: nn.Module, message: str
) -> None:
    strange = Around(nn.Sequential(part, model))
    before = snapshot(strange)
    with pytest.raises(ModelError, match=rf"^model: expected .*{message}"):
        petm.fit(strange, short[0], calibration=short[1], **SHORT)
    assert snapshot(strange) == before
    state = torch.get_rng_state()
    with pytest.raises(ModelError):
        petm.estimate(strange, short[0], calibration=short[1], **SHORT)
    assert torch.equal(state, torch.get_rng_state()), "no random number of the caller's is used"


def test_a_model_that_writes_into_its_input_gets_copies(
    model: nn.Module, short: tuple[Data, ...], tmp_path: Path
) -> None:
    train, calibration, test = short
    strange = Around(nn.Sequential(Centred(), model))
    held = TensorData(train.inputs(range(len(train))), train.labels)
    before, expected = held.images.clone(), model(test.inputs(range(len(test))) - 0.1).argmax(1).numpy()
    with pytest.warns(PetmWarning, match=r"^model: writes into its input, in network\.0 \(Centred\)"):
        grader = petm.fit(strange, held, calibration=calibration, **SHORT)
    assert torch.equal(held.images, before), "the caller's data stay"
    x = test.inputs(range(len(test)))
    assert isinstance(x, Tensor)
    assert (grader.grade_batch(x).labels == expected).all()
    assert (grader.grade_batch(x).labels == expected).all(), "and x is as it was"
    grader.save(tmp_path / "copies.petm")
    again = petm.load(tmp_path / "copies.petm", Around(nn.Sequential(Centred(), copy.deepcopy(model))))
    assert (again.grade_batch(x).labels == expected).all()
    assert (again.grade_batch(x).suspicion == grader.grade_batch(x).suspicion).all()


def test_probabilities_are_taken_as_such(model: nn.Module, short: tuple[Data, ...], tmp_path: Path) -> None:
    train, calibration, test = short
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = petm.fit(model, train, calibration=calibration, **SHORT).grade(test)
    strange = Around(model, lambda logits: logits.softmax(1))
    with pytest.warns(PetmWarning, match=r"^model: answers with probabilities") as said:
        grader = petm.fit(strange, train, calibration=calibration, **SHORT)
    assert len(said) == 1
    logits = predict_logits(strange, test)
    torch.testing.assert_close(logits, predict_logits(model, test).log_softmax(1), rtol=0, atol=1e-4)
    grades = grader.grade(test)
    assert (grades.labels == plain.labels).all()
    assert abs(grades.suspicion - plain.suspicion).max() < 1e-3, "the adapter learned as it does from logits"
    assert torch.equal(strange(test.inputs([0])), model(test.inputs([0])).softmax(1)), "the user's model is unchanged"
    grader.save(tmp_path / "p.petm")
    again = petm.load(tmp_path / "p.petm", Around(copy.deepcopy(model), lambda logits: logits.softmax(1)))
    assert (again.grade(test).suspicion == grades.suspicion).all()
    assert reading_of(again.adapted.base).kind == "probabilities"


@pytest.mark.parametrize(
    ("after", "kind", "said"),
    [
        (lambda z: z, "logit", "as the logit of the second of two classes"),
        (lambda z: z.squeeze(1), "logit", "as the logit"),
        (lambda z: z.sigmoid(), "probability", "as the probability of the second of two classes"),
    ],
    ids=["logit", "flat", "sigmoid"],
)
def test_one_number_for_each_sample_is_two_classes(
    model: nn.Module, short: tuple[Data, ...], after: Callable[[Tensor], Tensor], kind: str, said: str
) -> None:
    """Small digits, below five, against the others."""
    train, calibration, test = (TensorData(part.inputs(range(len(part))), (part.labels >= 5).long()) for part in short)

    def margin(logits: Tensor) -> Tensor:
        return (logits[:, 5:].logsumexp(1) - logits[:, :5].logsumexp(1)).unsqueeze(1)

    strange = Around(model, lambda logits: after(margin(logits)))
    with pytest.warns(PetmWarning, match=said):
        grader = petm.fit(strange, train, calibration=calibration, **SHORT)
    x = test.inputs(range(len(test)))
    assert reading_of(strange).kind == kind
    with torch.no_grad():
        z = margin(model(x))
    assert (grader.grade(test).labels == (z > 0).squeeze(1).numpy()).all()
    expected = torch.cat((torch.zeros_like(z), z), 1).softmax(1)
    torch.testing.assert_close(predict_logits(strange, test).softmax(1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "after",
    [
        lambda logits: (logits, torch.zeros(len(logits), 3, 5)),
        lambda logits: [torch.zeros(()), logits],
        lambda logits: {"features": logits.repeat(1, 3), "logits": logits},
    ],
    ids=["tuple", "list", "dict"],
)
def test_logits_are_found_among_several_answers(
    model: nn.Module, short: tuple[Data, ...], after: Callable[[Tensor], Any]
) -> None:
    grader = petm.fit(Around(model, after), short[0], calibration=short[1], **SHORT)
    assert (grader.grade(short[2]).labels == predict_logits(model, short[2]).argmax(1).numpy()).all()


def test_an_answer_without_logits_is_described(model: nn.Module, short: tuple[Data, ...]) -> None:
    two = Around(model, lambda logits: (logits, logits.repeat(1, 2)))
    with pytest.raises(ModelError, match=r"^model: .* got a tuple of 0 \(8, 10\), 1 \(8, 20\)\. "):
        petm.fit(two, short[0], calibration=short[1], **SHORT)
    with pytest.raises(ModelError, match=r"^model: .* got \(8,\) of torch.int64"):
        petm.fit(Around(model, lambda z: z.argmax(1)), short[0], calibration=short[1], **SHORT)


class NoGradient(nn.Module):
    """A frozen backbone, as it is written down, and a head."""

    def __init__(self, model: nn.Module, *, head: bool = True) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(10, 10) if head else nn.Identity()
        if head:
            with torch.no_grad():
                self.head.weight.copy_(torch.eye(10))
                self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.model(x)
        return self.head(features)


def test_without_a_gradient_to_the_input_adapters_learn_without_fgsm(model: nn.Module, short: tuple[Data, ...]) -> None:
    train, calibration, test = short
    with pytest.warns(PetmWarning, match=r"^epsilon: .* without FGSM.* lets a gradient through to its input"):
        grader = petm.fit(NoGradient(model), train, calibration=calibration, **SHORT)
    assert list(grader.adapted.ranks) == ["head"], "only what a gradient reaches is adapted"
    assert (grader.grade(test).labels == predict_logits(model, test).argmax(1).numpy()).all()
    both = petm.dual_logits(grader.adapted, test.inputs(range(20)))
    assert not torch.allclose(both.base, both.second), "the adapter has learned"


@pytest.mark.filterwarnings("ignore:epsilon")
def test_without_any_gradient_the_cause_is_named(model: nn.Module, short: tuple[Data, ...]) -> None:
    strange = NoGradient(model, head=False)
    with pytest.raises(ModelError, match=r"^model: expected a layer that an adapter can learn in, got no gradient"):
        petm.fit(strange, short[0], calibration=short[1], **SHORT)
    with pytest.raises(ModelError, match=r"^model: expected a gradient"):
        petm.fit(strange, short[0], calibration=short[1], layers={"model.fc2": 1}, **SHORT)
    with pytest.raises(ModelError, match=r"^model: expected one that lets a gradient through to its input"):
        petm.fit(strange, short[0], calibration=short[1], **{**SHORT, "recipe": "paper"})


def compiled() -> nn.Module:
    return torch.compile(seeded(TinyCNN))  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    model = seeded(TinyCNN)
    model.conv2.compile()
    return model


class Functional(nn.Module):
    """Reads its layer's weight and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.fc.weight, self.fc.bias)


class WithoutParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(1)[:, 300:310]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:epsilon")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lambda x: x, "expected a torch.nn.Module, got function"),
        (lambda: TinyCNN, "expected a torch.nn.Module, got TinyCNN"),
        (lambda: seeded(TinyCNN).to("meta"), "got conv1.weight on the meta device"),
        (lambda: torch.jit.trace(seeded(TinyCNN).eval(), images(2)), "got a ScriptModule"),
        (compiled, "not compiled, got one from torch.compile"),
        (compiled_in_place, "not compiled, got conv2 from torch.compile"),
        (WithoutParameters, "expected linear or convolution layers as modules, got none"),
        (Functional, "such as fc: its weight is used without a call"),
    ],
    ids=["function", "class", "meta", "script", "compiled", "compiled in place", "no parameters", "functional"],
)
def test_models_that_cannot_have_adapters(digits: tuple[Data, ...], make: Callable[[], Any], message: str) -> None:
    data = digits[0].subset(range(200))
    with pytest.raises(PetmError, match=rf"^model: .*{message}") as caught:
        petm.fit(make(), data, calibration=digits[1], force=True, **SHORT)
    assert "\n" not in str(caught.value)


def test_half_precision_on_a_cpu(model: nn.Module, short: tuple[Data, ...]) -> None:
    train, calibration, test = short
    half = copy.deepcopy(model).half()
    grader = petm.fit(half, train, calibration=calibration, **SHORT)
    agree = grader.grade(test).labels == predict_logits(model, test).argmax(1).numpy()
    assert agree.mean() > 0.98


def padded(rows: list[list[int]], *, left: bool) -> Fields:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, place], mask[row, place] = torch.tensor(tokens), 1
    return Fields({"input_ids": ids, "attention_mask": mask})


def token_rows(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 60, (3 + row % 9,), generator=generator).tolist() for row in range(count)]


class BagOfTokens(nn.Module):
    """Takes no mask: the mean over all tokens, padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.tokens = nn.Embedding(40, 16), nn.Embedding(64, 16)
        self.fc, self.head = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        where = self.positions(torch.arange(input_ids.shape[1])[None])
        return self.head(F.relu(self.fc((self.tokens(input_ids) + where).mean(1))))


def loud(model: nn.Module) -> nn.Module:
    """Random weights so large that samples differ."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.mul_(6)
    return model.eval()


def without_mask(rows: list[list[int]]) -> Fields:
    return Fields({"input_ids": padded(rows, left=False)["input_ids"]})


TEXT_MODELS: list[tuple[str, Callable[[], nn.Module], Callable[[list[list[int]]], Fields]]] = [
    ("GPT-2, padded left", gpt2, partial(padded, left=True)),
    ("takes no mask", lambda: seeded(BagOfTokens), partial(padded, left=False)),
    ("BERT, given no mask", bert, without_mask),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "batch"), [case[1:] for case in TEXT_MODELS], ids=[case[0] for case in TEXT_MODELS])
def test_texts_run_one_length_at_a_time_where_padding_changes_answers(
    make: Callable[[], nn.Module], batch: Callable[[list[list[int]]], Fields], tmp_path: Path
) -> None:
    model, rows = loud(make()), token_rows(90)
    if hasattr(model, "config"):
        model.config.pad_token_id = 0
    with torch.no_grad():
        expected = torch.cat([call_model(model, batch([tokens])) for tokens in rows])
    labels = torch.where(torch.arange(90) % 6 > 0, expected.argmax(1), (expected.argmax(1) + 1) % 3)
    data = as_data((batch(rows), labels))
    assert (predict_logits(model, data).argmax(1) != expected.argmax(1)).float().mean() > 0.02, "padding matters"
    with pytest.warns(PetmWarning, match=r"^model: answers otherwise where a text is padded"):
        grader = petm.fit(model, data, calibration=0.4, force=True, **SHORT)
    torch.testing.assert_close(predict_logits(model, data), expected, rtol=1e-4, atol=1e-4)
    grades = grader.grade(data)
    assert (grades.labels == expected.argmax(1).numpy()).all()
    grader.save(tmp_path / "t.petm")
    assert (petm.load(tmp_path / "t.petm", model).grade(data).suspicion == grades.suspicion).all()
    alone = grader.grade_batch(dict(batch(rows[:1]).items()))
    assert alone.suspicion[0] == pytest.approx(grades.suspicion[0], abs=1e-5)


def test_padding_that_is_masked_needs_nothing() -> None:
    model = loud(bert())
    data = as_data((padded(token_rows(12), left=False), torch.arange(12) % 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not probe(model, data).by_length


def test_text_is_moved_at_the_embedding_of_tokens_not_of_positions() -> None:
    model = loud(seeded(BagOfTokens))
    x = padded([tokens[:3] for tokens in token_rows(12)], left=False)
    data = as_data((x, torch.arange(12) % 3))
    replaced = petm.replace_errors(model, data, petm.ErrorSet(torch.arange(12), data.labels, 12), epsilon=0.1)
    assert replaced.added == "+tokens"


def test_inputs_by_name_without_an_embedding_learn_without_fgsm() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(5, 32), nn.Linear(32, 3)

        def forward(self, numbers: Tensor, extra: Tensor) -> Tensor:
            return self.head(F.relu(self.fc(torch.cat((numbers, extra), 1))))

    model = loud(seeded(Columns))
    x = {"numbers": images(80, 3), "extra": images(80, 2, seed=1)}
    with torch.no_grad():
        answers = model(**x).argmax(1)
    labels = torch.where(torch.arange(80) % 5 > 0, answers, (answers + 1) % 3)
    data = as_data((x, labels))
    with pytest.warns(PetmWarning, match=r"^epsilon: .*embedding"):
        grader = petm.fit(model, data, calibration=0.4, force=True, **SHORT)
    assert (grader.grade(data).labels == answers.numpy()).all()


def test_an_ordinary_model_is_read_as_before(model: nn.Module, digits: tuple[Data, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe(model, digits[0]) == reading_of(nn.Module())
    assert "_petm_reading" not in vars(model)
    with pytest.raises(ArgumentError):
        petm.fit(model, digits[0], recipe="none such")


def _of_four(n: int) -> tuple[nn.Module, Data]:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), images_of_two(n)


def images_of_two(n: int) -> Data:
    drawn = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    return TensorData(drawn, torch.arange(n) % 3)


@pytest.mark.parametrize(
    ("after", "n"),
    [
        (torch.sigmoid, 60),
        (torch.sigmoid, 8),
        (lambda z: torch.sigmoid(z).view(-1, 3).double(), 8),
        (lambda z: (0.5 + z).clamp(0, 1), 60),  # no sigmoid, but from end to end
    ],
    ids=["many", "few", "of another form", "hard"],
)
def test_sigmoids_are_neither_logits_nor_probabilities(after: Callable[[Tensor], Tensor], n: int) -> None:
    network, data = _of_four(n)
    with pytest.raises(ModelError, match=r"model: expected logits, or probabilities .* as of 3 sigmoids"):
        probe(Around(network, after), data)


@pytest.mark.parametrize(
    "after", [lambda z: 2 * torch.sigmoid(z), lambda z: 0.5 + 0.01 * z, lambda z: 0.1 * z.sigmoid() + 0.2]
)
def test_small_logits_are_logits(after: Callable[[Tensor], Tensor]) -> None:
    network, data = _of_four(60)
    assert probe(Around(network, after), data).kind == "logits"


@pytest.mark.parametrize(("classes", "kind"), [(3, "logits"), (1, "logit")])
@pytest.mark.filterwarnings("ignore:model. answers with one number a sample. petm takes it as the logit")
def test_what_a_linear_layer_gives_is_logits_wherever_it_lies(classes: int, kind: str) -> None:
    """As of an untrained network: all in [0, 1], from end to end for three classes, and sums that may be 1."""
    layer, data = nn.Linear(4, classes), images_of_two(60)
    with torch.no_grad():
        layer.weight.mul_(0.001)
        layer.bias.copy_(torch.tensor([0.01, 0.02, 0.97][:classes]))
    assert probe(nn.Sequential(nn.Flatten(), layer), data).kind == kind


def test_probabilities_rounded_to_three_digits() -> None:
    network, data = _of_four(60)
    with pytest.warns(PetmWarning, match=r"answers with probabilities"):
        assert probe(Around(network, lambda z: 0.9993 * z.softmax(1)), data).kind == "probabilities"


@pytest.mark.parametrize("after", [lambda z: z.softmax(1), lambda z: z[:, :1]], ids=["probabilities", "logit"])
def test_a_graph_answers_as_the_grader(
    model: nn.Module, short: tuple[Data, ...], after: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    train, calibration, test = short
    if after(torch.zeros(2, 10)).shape[1] == 1:
        train, calibration = (
            TensorData(part.inputs(range(len(part))), (part.labels > 4).long()) for part in (train, calibration)
        )
    with pytest.warns(PetmWarning, match=r"^model: answers with"):
        grader = petm.fit(Around(model, after), train, calibration=calibration, force=True, **SHORT)
    x = test.inputs(range(40))
    petm.export_onnx(grader, tmp_path / "g.onnx", x)
    graph, grades = petm.OnnxGrader(tmp_path / "g.onnx").grade(x.numpy()), grader.grade(x)
    assert (graph.labels == grades.labels).all()
    assert abs(graph.suspicion - grades.suspicion).max() < 1e-5
