"""The guarantee where it is told to a fit: refused, marked or given; and the labels that a fit accepts."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from experiments.guarantee_ways import MIXTURES, WAYS, violated
from html_page import Page
from image_files import write_images
from petm.adapter.model import Member
from petm.data.base import Data, Joined, TensorData, as_data
from petm.data.opening import open_data
from petm.data.views import MIRROR
from petm.errors import ArgumentError, DataError, PetmWarning
from petm.fitting import CHOICE_SHARE, estimate, fit, fit_adopted, fitted
from petm.grading.card import model_card
from petm.grading.grader import load
from petm.grading.manifest import read_manifest
from petm.report.fit_report import write_fit_report
from petm.selective.guarantee import guarantee
from petm.selective.targets import Coverage, Disagreement, MaxRisk, Recall
from petm.selective.thresholds import class_thresholds
from petm.sklearn import GradedClassifier
from petm.training.preflight import Answers
from petm.training.recipes import Recipe

VIEWS: Any = {"recipe": Recipe("flipped", (Member("", MIRROR),), copies=0), "device": "cpu"}
"""A fit without training."""
GUARANTEES = (MaxRisk(0.2), MaxRisk(0.2, per="class"), Recall(0.5, confidence=0.9))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def answers_of(
    predicted: NDArray[Any], labels: NDArray[Any], *, classes: int = 2, names: tuple[str, ...] = ()
) -> Answers:
    found, true = (torch.as_tensor(part.astype(np.int64)) for part in (predicted, labels))
    return Answers(found, true, classes, names, "file")


def plain(data: Data) -> tuple[Tensor, Tensor]:
    x = data.inputs(range(len(data)))
    assert isinstance(x, Tensor)
    return x, data.labels


@pytest.mark.parametrize("target", GUARANTEES)
def test_no_guarantee_rests_on_training_data(model: nn.Module, digits: tuple[Data, ...], target: Any) -> None:
    for begin in (fit, estimate):
        for share in (None, 0.3):
            with pytest.raises(ArgumentError, match=r"^calibration: "):
                begin(model, digits[0], calibration=share, target=target, **VIEWS)
        with pytest.raises(ArgumentError, match=r"^calibration_from_data: "):
            begin(model, digits[0], calibration=digits[2], target=target, calibration_from_data=True, **VIEWS)
    x, y = (part.numpy() for part in plain(digits[0]))
    with pytest.raises(ArgumentError, match=r"^calibration: "):
        GradedClassifier(model, target=target, **VIEWS).fit(x, y)


@pytest.mark.parametrize("target", [None, Coverage(0.8), Recall(0.9), Disagreement()])
def test_what_guarantees_nothing_needs_no_calibration_set(
    model: nn.Module, digits: tuple[Data, ...], target: Any
) -> None:
    grader = fit(model, digits[0], target=target, **VIEWS)
    assert grader.origin.data["calibration"].part_of_data
    assert not grader.threshold.stated


@pytest.mark.slow
def test_a_stated_guarantee_is_marked_wherever_it_is_told(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    x, y = (part.numpy() for part in plain(digits[2]))
    told: dict[str, Any] = {"target": MaxRisk(0.2, confidence=0.8), "calibration_from_data": True, **VIEWS}
    graders = [fit(model, digits[2], **told), GradedClassifier(model, **told).fit(x, y).grader_]
    given = fit(model, digits[0], calibration=digits[2], target=MaxRisk(0.2, confidence=0.8), **VIEWS)
    for number, grader in enumerate([*graders, given]):
        stated = number < 2
        assert grader.threshold.holds
        assert grader.threshold.stated is stated
        grader.save(tmp_path / f"{number}.petm")
        again = load(tmp_path / f"{number}.petm", model)
        assert again.threshold == grader.threshold
        assert again.origin.data["calibration"] == grader.origin.data["calibration"]
        assert again.origin.data["calibration"].part_of_data is stated
        write_fit_report(again, digits[2], tmp_path / "page.html")
        card = model_card(read_manifest(tmp_path / f"{number}.petm"), again.adapted, include_base=False)
        texts = (guarantee(again.threshold), card.replace("\\", ""), (tmp_path / "page.html").read_text())
        assert ["calibration_from_data)." in text for text in texts] == 3 * [stated]


def test_samples_of_the_calibration_set_are_unseen_and_count_once(model: nn.Module, digits: tuple[Data, ...]) -> None:
    fresh = digits[2].subset(range(300))
    mixed = Joined(fresh, digits[0].subset(range(100)), fresh.subset(range(50)))
    clean, found = (fit(model, digits[0], calibration=each, **VIEWS) for each in (fresh, mixed))
    origin = found.origin.data["calibration"]
    assert (origin.samples, origin.seen, origin.repeated) == (300, 100, 50)
    assert found.threshold == clean.threshold
    assert found.measured["calibration_samples"] == 300
    with pytest.raises(DataError, match=r"^calibration: "):
        fit(model, digits[0], calibration=digits[0], **VIEWS)


def test_an_estimate_says_what_the_fit_will_leave_out(
    model: nn.Module, digits: tuple[Data, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = digits[2].subset(range(300))
    mixed = Joined(fresh, digits[0].subset(range(100)), fresh.subset(range(50)))
    assert estimate(model, digits[0], calibration=mixed, **VIEWS).calibration_samples == 300
    said = " ".join(capfd.readouterr().err.split())
    assert "300 samples from" in said
    assert "without 100 training samples, without 50 repetitions" in said
    with pytest.raises(DataError, match=r"^calibration: "):
        estimate(model, digits[0], calibration=digits[0], **VIEWS)


def test_messages_name_the_argument(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x, labels = plain(digits[0])
    right, wrong = TensorData(x, labels), TensorData(x, labels + 1)
    with pytest.raises(DataError, match=r"^data \(tensors\): expected labels from 0 to 9"):
        fit(model, wrong, **VIEWS)
    with pytest.raises(DataError, match=r"^calibration \(tensors\): expected labels from 0 to 9"):
        fit(model, right, calibration=wrong, **VIEWS)
    with pytest.raises(DataError, match=r"^calibration \(tensors\): expected inputs like"):
        fit(model, right, calibration=TensorData(x * 255, labels), **VIEWS)


def test_an_adopted_adapter_is_calibrated_on_each_sample_once(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    fit(model, digits[0], calibration=digits[1], layers={"fc1": 2}, recipe=Recipe("one", epochs=1, copies=0)).save(
        tmp_path / "g.petm"
    )
    copies = digits[2].subset(torch.arange(200).repeat(3))
    grader, samples = fit_adopted(model, tmp_path / "g.petm", copies, device="cpu")
    assert (len(samples), grader.measured["calibration_samples"]) == (200, 200)
    assert grader.origin.data["calibration"].repeated == 400


def test_terminal_card_and_report_show_the_same_figures(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    grader, samples = fitted(model, digits[0], calibration=digits[2], target=MaxRisk(0.08, confidence=0.8), **VIEWS)
    wrong, trusted = grader.grade(samples).labels != samples.labels.numpy(), grader.grade(samples).trusted
    assert 0 < wrong[trusted].sum() < wrong.sum()
    counts = {
        "coverage": (trusted.sum(), len(trusted)),
        "risk": (wrong[trusted].sum(), trusted.sum()),
        "recall": (wrong[~trusted].sum(), wrong.sum()),
    }
    grader.save(tmp_path / "g.petm")
    manifest = read_manifest(tmp_path / "g.petm")
    card = model_card(manifest, grader.adapted, include_base=False)
    write_fit_report(grader, samples, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    for name, (count, of) in counts.items():
        found: Any = manifest.measured[name]
        assert (found["count"], found["of"]) == (count, of), name
        assert f"({count:,} of {of:,}" in card, name
        assert f"{count:,} of {of:,}" in page.text, name


# The labels


def refused(model: nn.Module, data: Any, *, shows: str = "", **more: Any) -> None:
    """Checks that a fit is refused at its data, and that the message shows the order found."""
    with pytest.raises(DataError, match=f"^data: .*{shows}"):
        fit(model, data, **VIEWS, **more)
    assert fit(model, data, force=True, **VIEWS, **more).measured["accuracy_on_data"]["value"] < 0.5


@pytest.mark.parametrize(
    ("order", "shows"),
    [
        (range(9, -1, -1), "model's class 0 is labelled 9, 1 is labelled 8"),
        ([0, 2, 1, *range(3, 10)], "model's class 1 is labelled 2, 2 is labelled 1"),
        ([*range(1, 10), 0], "model's class 0 is labelled 1"),
    ],
)
def test_labels_in_another_order_are_refused(
    model: nn.Module, digits: tuple[Data, ...], order: Any, shows: str
) -> None:
    x, labels = plain(digits[0])
    moved = TensorData(x, torch.tensor(list(order))[labels])
    with pytest.raises(DataError, match=f"^data: .*{shows}"):
        fit(model, moved, **VIEWS)
    x, labels = plain(digits[2])
    with pytest.raises(DataError, match=f"^calibration: .*{shows}"):
        fit(model, digits[0], calibration=TensorData(x, torch.tensor(list(order))[labels]), **VIEWS)


@pytest.mark.slow
def test_named_folders_in_the_order_of_the_alphabet(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    named = TensorData(*plain(digits[0]), classes=NAMES)
    write_images(named, range(500), tmp_path / "named")
    refused(model, open_data(tmp_path / "named"), shows="model's class 0 .named 'eight'. is labelled 'zero'")
    right = fit(model, open_data(tmp_path / "named", classes=NAMES), **VIEWS)
    assert right.measured["accuracy_on_data"]["value"] > 0.9
    shows = "model's class 0 .named 'nine'. is labelled 'zero'"
    refused(model, open_data(tmp_path / "named", classes=NAMES[::-1]), shows=shows)


def test_an_absent_class_folder_is_refused_and_an_empty_one_is_a_class(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    named = TensorData(*plain(digits[0]), classes=tuple("abcdefghij"))
    write_images(named, (named.labels != 1).nonzero().flatten()[:400].tolist(), tmp_path / "letters")
    with pytest.raises(DataError, match="a, c, d"):
        fit(model, open_data(tmp_path / "letters"), **VIEWS)
    found = [fit(model, open_data(tmp_path / "letters", classes="abcdefghij"), **VIEWS)]
    (tmp_path / "letters" / "b").mkdir()
    found += [fit(model, open_data(tmp_path / "letters"), **VIEWS)]
    assert min(grader.measured["accuracy_on_data"]["value"] for grader in found) > 0.9


def right_or_refused(model: nn.Module, data: Any) -> None:
    """Checks that a fit has the model's labels, or shows in which order they are."""
    try:
        assert fit(model, data, **VIEWS).measured["accuracy_on_data"]["value"] > 0.85
    except DataError as error:
        assert "is labelled" in str(error)  # noqa: PT017


class Twelve(nn.Module):
    """The digits, and two classes that are never predicted."""

    def __init__(self, digits: nn.Module) -> None:
        super().__init__()
        self.digits = digits

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.digits(x), (0, 2), value=-9.0)


def test_folders_named_by_numbers_of_two_digits(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    write_images(digits[0], range(500), tmp_path / "numbers")
    for grey in range(4):
        folder = tmp_path / "numbers" / str(10 + grey % 2)
        folder.mkdir(exist_ok=True)
        Image.new("L", (28, 28), grey).save(folder / f"{grey}.png")
    right_or_refused(Twelve(model), open_data(tmp_path / "numbers"))


def test_a_target_transform_is_seen(model: nn.Module, digits: tuple[Data, ...]) -> None:
    class Turned(Dataset[Any]):
        """A torch data set whose targets are those before its transform."""

        def __init__(self) -> None:
            self.x, labels = plain(digits[0])
            self.targets = [9 - int(label) for label in labels]

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.x[index], 9 - self.targets[index]

    right_or_refused(model, as_data(Turned()))


def test_names_in_another_order_than_the_models_are_refused(model: nn.Module, digits: tuple[Data, ...]) -> None:
    class Config:
        id2label = {number: name.upper() for number, name in enumerate(NAMES)}  # noqa: RUF012

    model.config = Config()  # type: ignore[assignment]
    named = TensorData(*plain(digits[0]), classes=NAMES)
    assert fit(model, named, **VIEWS).measured["accuracy_on_data"]["value"] > 0.9
    with pytest.raises(DataError, match="ZERO, ONE"):
        fit(model, TensorData(*plain(digits[0]), classes=NAMES[::-1]), **VIEWS)
    Config.id2label = {number: f"LABEL_{number}" for number in range(10)}
    assert fit(model, named, **VIEWS).measured["accuracy_on_data"]["value"] > 0.9


def test_a_model_that_guesses_is_refused(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x, labels = plain(digits[0])
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    refused(model, TensorData(x, mixed), shows="guessing among 10")
    nn.init.zeros_(model.get_submodule("fc2").weight)  # the bias alone: always one class
    rare = torch.where(labels == 3, labels, int(model(x[:1]).argmax()))
    with pytest.raises(DataError, match=r"^data: expected predictions of more than one class, got \d for all"):
        fit(model, TensorData(x, rare), **VIEWS)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_few_calibration_samples_need_not_rule_out_guessing_alone(n: int) -> None:
    random = np.random.default_rng(n)
    for _ in range(100):
        labels = random.integers(0, 2, 2000)
        predicted = np.where(random.random(2000) < 0.65, labels, 1 - labels)
        data, few = answers_of(predicted[n:], labels[n:]), answers_of(predicted[:n], labels[:n])
        data.check("data")
        if few.accuracy.high >= data.accuracy.low:
            few.check("calibration", like=data)
    with pytest.raises(DataError, match=r"^calibration: .* got 90 of 200 right"):
        odd = np.arange(200) % 2
        answers_of(np.where(np.arange(200) % 20 < 9, odd, 1 - odd), odd).check("calibration", like=data)


def test_a_detector_with_many_false_alarms_is_no_guess() -> None:
    rare, alarms = np.arange(1000) % 20 == 0, np.arange(1000) % 5 < 3  # 43 % right: all that is rare, and 60 % alarms
    answers_of(rare | alarms, rare).check("data")


@pytest.mark.parametrize("classes", [2, 3])
def test_guesses_as_frequent_as_the_labels_are_refused_and_doubtful_ones_named(classes: int) -> None:
    random = np.random.default_rng(classes)
    share = [0.95, 0.05] if classes == 2 else [0.9, 0.07, 0.03]
    caught = Counter[tuple[type[Exception], int]]()
    for n in 100 * [4000, 60]:
        predicted, labels = (random.choice(classes, n, p=share) for _ in range(2))
        try:
            answers_of(predicted, labels, classes=classes).check("data")
        except (DataError, PetmWarning) as found:
            caught[type(found), n] += 1
    assert caught[DataError, 4000] >= 85
    assert caught[DataError, 4000] + caught[PetmWarning, 4000] >= 90
    assert caught[PetmWarning, 60] >= 50
    for _ in range(100):  # finds a third of what is rare, and as many besides
        labels = (random.random(2000) < 0.05).astype(int)
        predicted = np.where(labels == 1, random.random(2000) < 1 / 3, random.random(2000) < 0.02)
        answers_of(predicted, labels).check("data")


def test_guessing_says_how_likely_it_is() -> None:
    odd = np.arange(20) % 2
    with pytest.raises(DataError, match=r"got 11 of 20 right .*, as guessing has in 41% of cases\. .* more samples"):
        answers_of(np.where(np.arange(20) < 11, odd, 1 - odd), odd).check("data")


def test_another_order_that_is_doubtful_is_named() -> None:
    labels = np.arange(80) % 8
    swapped = np.where(labels == 0, 1, np.where(labels == 1, 0, labels))
    predicted = np.where(np.arange(80) < 70, swapped, labels)
    with pytest.warns(PetmWarning, match=r"^data: expected labels in the order .* 0 is labelled 1, 1 is labelled 0\."):
        answers_of(predicted, labels, classes=8).check("data")


def test_another_order_names_the_outputs_as_they_were_named() -> None:
    labels = np.arange(100) % 2
    with pytest.raises(DataError, match=r"model's class 0 \(named 'dog'\) is labelled 'cat', 1 \(named"):
        answers_of(1 - labels, labels, names=("dog", "cat")).check("data")


def test_an_estimate_refuses_labels_that_are_not_the_models(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x, labels = plain(digits[0])
    with pytest.raises(DataError, match="in the order of the model's outputs"):
        estimate(model, TensorData(x, 9 - labels), **VIEWS)
    assert estimate(model, TensorData(x, 9 - labels), force=True, **VIEWS).samples


def test_accuracies_are_printed_and_told(
    model: nn.Module, digits: tuple[Data, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    measured = fit(model, digits[0], calibration=digits[2], **VIEWS).measured
    for name, data in (("data", digits[0]), ("calibration", digits[2])):
        with torch.no_grad():
            right = int((model(plain(data)[0]).argmax(1) == data.labels).sum())
        assert measured[f"accuracy_on_{name}"]["count"] == right
        assert f"{right / len(data):.1%} of {len(data)} samples of {name}" in capfd.readouterr().err or name != "data"


def test_accuracies_far_apart_are_warned_of(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x, labels = plain(digits[2])
    noisy = torch.where(torch.arange(len(labels)) % 10 < 4, torch.randint(0, 10, labels.shape), labels)
    for data, fresh in ((digits[0], TensorData(x, noisy)), (TensorData(x, noisy), digits[0])):
        with pytest.warns(PetmWarning, match=r"^calibration: "):
            fit(model, data, calibration=fresh, **VIEWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, digits[0], calibration=digits[2], **VIEWS)


# The simulation


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if "petm fit" not in way])
def test_the_guarantee_is_violated_no_more_often_than_it_says(way: str) -> None:
    for mixture in ("30 % seen", "10 copies"):
        if "from_data" in way and MIXTURES[mixture][0]:
            continue
        found = violated(way, mixture, 20)
        assert found["claimed"] > 0
        assert found["violated"].count <= found["at_most"]


def test_the_command_line_guarantees_as_python_does() -> None:
    way = violated("petm fit --calibration", "10 copies", 2, seed=2)
    assert way == violated("fit(calibration=)", "10 copies", 2, seed=2) | {"way": way["way"]}


def test_a_calibration_set_of_training_samples_gives_no_guarantee() -> None:
    assert violated("fit(calibration=)", "100 % seen", 3)["claimed"] == 0


class ByFirst(nn.Module):
    """Two classes by the sign of the first of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x)
        return found


def test_inputs_that_repeat_and_are_wrong_are_not_trusted_by_leaving_them_out() -> None:
    random = torch.Generator().manual_seed(0)

    def drawn(n: int, repeated: float) -> TensorData:
        x = torch.randn(n, 4, generator=random)
        x[:, 0] += x[:, 0].sign()
        labels, often = (x[:, 0] < 0).long(), torch.rand(n, generator=random) < repeated
        x[often], labels[often] = torch.tensor([3.0, 0, 0, 0]), 1
        return TensorData(x, labels)

    told: Any = {"target": MaxRisk(0.05), "layers": {"fc": 2}, "device": "cpu"}
    for repeated in (0.0, 0.1):  # unseen by the training, and seen
        model, later = ByFirst(), drawn(4000, 0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            grader = fit(model, drawn(500, repeated), calibration=drawn(1000, 0.1), **told)
        assert any("expected each sample once and unseen, got " in str(warning.message) for warning in caught)
        grades = grader.grade(later)
        wrong = grades.trusted & (grades.labels != later.labels.numpy())
        assert wrong.sum() <= 0.05 * grades.trusted.sum()
        used = grader.origin.data["calibration"].samples
        assert used == grader.measured["calibration_samples"]
        alone = (1000 - used) / CHOICE_SHARE  # of the distinct samples, a part was there to choose on
        assert 850 < alone < 950


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inputs_that_repeat_in_data_that_calibrate_are_counted_on_whichever_side_they_are(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def drawn(n: int) -> TensorData:
        x = torch.randn(n, 1, 1, 4, generator=random)
        x[..., 0] += x[..., 0].sign()
        x[..., 3] = x[..., 0]  # so that the mirror image has the same answer
        labels, often = (x[:, 0, 0, 0] < 0).long(), torch.rand(n, generator=random) < 0.1
        x[often], labels[often] = torch.tensor([1.2, 0, 0, 1.2]), 1
        return TensorData(x, labels)

    model, later = nn.Sequential(nn.Flatten(), ByFirst()), drawn(4000)
    with pytest.warns(PetmWarning, match="^calibration: expected each sample once and unseen, got "):
        grader = fit(model, drawn(2000), target=MaxRisk(0.05), calibration_from_data=True, seed=seed, **VIEWS)
    grades = grader.grade(later)
    wrong = grades.trusted & (grades.labels != later.labels.numpy())
    assert wrong.sum() <= 0.05 * grades.trusted.sum()


def test_copies_in_one_class_do_not_count_for_what_repeats_in_another() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1800, 1, 1, 4, generator=random)
    x[..., 3] = first = x[..., 0]  # so that the mirror image has the same answer
    margin, found = first.flatten().abs(), (first.flatten() < 0).long()
    wrong = (torch.rand(1800, generator=random) < 0.4 * (-2 * margin).exp()) & (torch.arange(1800) < 1500)
    every, data = TensorData(x, torch.where(wrong, 1 - found, found)), range(1500, 1800)
    once, train = every.subset(range(1500)), every.subset(data)
    right = ((found == 0) & ~wrong)[:1500].nonzero().flatten()
    copied = torch.cat([*[right] * 4, (wrong & (found == 1)).nonzero().flatten()[::3]])
    mixed = Joined(once, once.subset(copied))
    model = nn.Sequential(nn.Flatten(), ByFirst())
    with pytest.warns(PetmWarning, match="^calibration: expected each sample once and unseen, got "):
        grader = fit(model, train, calibration=mixed, target=MaxRisk(0.1, per="class"), **VIEWS)
    values = []
    for samples in (once, mixed):
        grades = grader.grade(samples)
        errors = grades.labels != samples.labels.numpy()
        values.append(class_thresholds(grades.suspicion, errors, grades.labels, classes=2, max_risk=0.1).values)
    assert values[0][0] < values[1][0]
    assert values[0][1] > values[1][1]
    assert grader.threshold.values == (values[0][0], values[1][1])
    assert grader.threshold.coverage == pytest.approx(grader.grade(mixed).trusted.mean())
