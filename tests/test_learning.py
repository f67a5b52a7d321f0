"""The second opinion learns from confirmed labels under shift; the base model stays, and no label judges itself."""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from networks import snapshot
from petm.adapter.model import Member, views_alone
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data, Joined, TensorData
from petm.data.labels import UNLABELLED
from petm.data.views import MIRROR
from petm.errors import ArgumentError, DataError, PetmWarning
from petm.evidence.features import Mahalanobis
from petm.evidence.suspicion import Suspicion
from petm.grading.grader import Grader, fit_grader, load
from petm.learning import PRESENT, learn, learned
from petm.selective.bootstrap import bootstrap
from petm.selective.choice import choose
from petm.selective.metrics import aurc
from petm.selective.targets import Disagreement, MaxRisk
from petm.training.from_labels import label_weights, learn_from_labels
from petm.training.run_folder import Storage

pytestmark = pytest.mark.filterwarnings("ignore:.*values.*:petm.errors.PetmWarning")
BUDGETS = {"max_extra_parameters": 0.3, "max_extra_time": 0.5}  # a tenth of 2,574 parameters is too few


def dimmed(data: Data, brightness: float) -> Data:
    return TensorData(
        data.inputs(range(len(data))) * brightness, data.labels, classes=data.classes, value_range=(0.0, 1.0)
    )


def production(digits: tuple[Data, ...], labels: int, brightness: float = 0.35) -> tuple[Data, Data]:
    """Labelled inputs of production, and others to judge by."""
    pool = Joined(*(dimmed(part, brightness) for part in digits[1:]))
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))
    return pool.subset(order[:labels]), pool.subset(order[labels:])


@pytest.fixture
def grader(model: nn.Module, digits: tuple[Data, ...]) -> Grader:
    return fit_grader(views_alone(model, ()), digits[1], target=None, score="softmax")


def gain(before: Grader, after: Grader, data: Data):
    first, second = before.grade(data), after.grade(data)
    wrong = first.labels != data.labels.numpy()
    return bootstrap(aurc, second.suspicion, wrong, minus=first.suspicion)


def test_it_learns_the_errors_of_a_shift_and_leaves_the_base_model(grader, digits):
    before = snapshot(grader.adapted.base)
    labels, others = production(digits, 400)
    found = learned(grader, labels, **BUDGETS)
    assert snapshot(grader.adapted.base) == before
    assert found.grader.choice.compared[0].name == PRESENT
    assert "adapter" in found.grader.choice.name
    assert gain(grader, found.grader, others).high < 0
    changes = {change.name: change for change in found.changes}
    told = changes["aurc"]
    assert told.difference.high < 0
    # Judged by adapters that have not seen the labels, so the gain there is that on others.
    there = gain(grader, found.grader, others)
    assert told.difference.low < there.high
    assert there.low < told.difference.high
    assert changes["accuracy of the second opinion"].difference.low > 0
    assert (found.judged, found.labels, found.notes) == (400, 400, ())
    assert torch.equal(
        torch.from_numpy(found.grader.grade(others).labels), torch.from_numpy(grader.grade(others).labels)
    )


def test_on_undisturbed_data_it_is_not_worse(grader, digits):
    labels, others = production(digits, 400, 1.0)
    found = learned(grader, labels, **BUDGETS)
    assert gain(grader, found.grader, others).low <= 0
    assert found.changes[0].difference.low <= 0


def test_what_has_learned_learns_again(grader, digits):
    labels, others = production(digits, 700)
    first = learn(grader, labels.subset(range(350)), **BUDGETS)
    before = first.grade(others).suspicion
    found = learned(first, labels.subset(range(350, 700)), **BUDGETS)
    assert np.array_equal(first.grade(others).suspicion, before)
    assert found.grader.choice.compared[0].name == PRESENT
    assert gain(first, found.grader, others).low <= 0


def test_evidence_of_the_present_grader_is_compared_together_with_the_adapter(model, digits, tmp_path, monkeypatch):
    adapted = views_alone(model, ())
    adapted.take_features("fc2")
    distance = Mahalanobis().fit(predict_answers(adapted, digits[0]), digits[0].labels)
    grader = fit_grader(adapted, digits[1], target=None, score=Suspicion((distance,)))
    taken = "regression with the adapter and features"

    def named(values, *parts, **how):
        return replace(choose(values, *parts, **how), name=taken)

    monkeypatch.setattr("petm.learning.choose", named)
    labels, others = production(digits, 400)
    better = learned(grader, labels, **BUDGETS).grader
    assert {taken, "regression with features"} <= {row.name for row in better.choice.compared}
    *_, last = better.suspicion.columns
    assert torch.equal(last.state["centres"], distance.state["centres"])  # not fitted to the shift
    assert gain(grader, better, others).high < 0
    better.save(tmp_path / "b.petm")
    again = load(tmp_path / "b.petm", model)
    assert np.array_equal(again.grade(others).suspicion, better.grade(others).suspicion)


def test_a_bundle_names_its_parent(grader, digits, tmp_path):
    grader.save(tmp_path / "a.petm")
    parent = load(tmp_path / "a.petm", grader.adapted.base)
    assert len(parent.bundle) == 64
    better = learn(parent, production(digits, 400)[0], **BUDGETS)
    better.save(tmp_path / "b.petm")
    again = load(tmp_path / "b.petm", grader.adapted.base)
    assert again.origin.settings["parent"] == parent.bundle != again.bundle
    others = production(digits, 400)[1]
    assert np.array_equal(again.grade(others).suspicion, better.grade(others).suspicion)


def test_a_guarantee_is_set_on_labels_that_nothing_has_learned_from(grader, digits, monkeypatch):
    seen = []

    def spy(model, labelled, *args, **how):
        seen.append(labelled)
        return learn_from_labels(model, labelled, *args, **how)

    monkeypatch.setattr("petm.learning.learn_from_labels", spy)
    labels, others = production(digits, 600)
    found = learned(grader, labels, target=MaxRisk(0.1), **BUDGETS)
    assert (found.labels, found.judged) == (300, 300)
    threshold = found.grader.threshold
    assert (threshold.max_risk, threshold.confidence) == (0.1, 0.95)
    grades = found.grader.grade(others)
    assert (grades.labels != others.labels.numpy())[grades.trusted].mean() <= 0.1
    held = found.grader.origin.data["calibration"]
    assert held.samples == 300 != len(labels)
    assert held.content != seen[0].content


def test_what_nobody_can_tell_counts_as_wrong_for_a_guarantee_and_teaches_nothing(grader, digits, monkeypatch):
    labels, _ = production(digits, 600)
    untold = np.arange(600) % 20 == 0
    some = replaced(labels, labels.labels.where(torch.from_numpy(~untold), UNLABELLED))
    seen, read = [], []
    fit, teach = fit_grader, learn_from_labels
    monkeypatch.setattr("petm.learning.fit_grader", lambda *parts, **how: read.append(parts) or fit(*parts, **how))
    monkeypatch.setattr(
        "petm.learning.learn_from_labels",
        lambda model, data, *parts, **how: seen.append(data) or teach(model, data, *parts, **how),
    )
    found = learned(grader, some, chance=np.ones(600), target=MaxRisk(0.1), **BUDGETS)
    held = read[0][1].labels
    assert (found.judged, len(held)) == (300, 300)
    assert found.labels == len(seen[0]) == 570 - int((held != UNLABELLED).sum())
    assert (seen[0].labels != UNLABELLED).all()
    threshold, grades = found.grader.threshold, found.grader.grade(read[0][1])
    assert threshold.risk == pytest.approx((grades.labels != held.numpy())[grades.trusted].mean())
    assert (held.numpy() == UNLABELLED)[grades.trusted].any()


def test_a_calibration_set_leaves_all_labels_to_learn_from(grader, digits):
    labels, others = production(digits, 300)
    found = learned(grader, labels, calibration=others, target=MaxRisk(0.1), **BUDGETS)
    assert (found.labels, found.judged) == (300, len(others))
    assert found.grader.threshold.holds
    with pytest.raises(DataError, match="calibration"):
        learned(grader, labels, calibration=labels, target=MaxRisk(0.1), **BUDGETS)


@pytest.mark.parametrize(("count", "how"), [(60, {}), (400, {"drawn": False}), (400, {"chance": np.full(400, np.nan)})])
def test_without_the_labels_for_it_nothing_is_guaranteed(grader, digits, count, how):
    labels, _ = production(digits, count)
    with pytest.warns(PetmWarning, match=r"^target: .* cannot be guaranteed"):
        found = learned(grader, labels, target=MaxRisk(0.02), **how, **BUDGETS)
    assert found.labels == count
    assert found.grader.threshold.confidence is None
    assert found.notes


def test_few_labels_change_the_threshold_alone(grader, digits):
    labels, _ = production(digits, 40)
    with pytest.warns(PetmWarning, match="expected 50"):
        found = learned(grader, labels, **BUDGETS)
    assert not found.grader.adapted.adapters
    assert found.grader.threshold != grader.threshold


def test_labels_count_as_often_as_the_rows_that_they_stand_for(grader, digits):
    labels, others = production(digits, 600)
    grades = grader.grade(labels)
    suspect = grades.suspicion > np.median(grades.suspicion)
    drawn = suspect | (np.random.default_rng(0).random(600) < 0.25)
    found = learned(grader, labels.subset(torch.from_numpy(drawn)), chance=np.where(suspect, 1, 0.25)[drawn], **BUDGETS)
    assert gain(grader, found.grader, others).high < 0
    told = {change.name: change for change in found.changes}["accuracy of the second opinion"].before
    assert told == pytest.approx((grades.labels == labels.labels.numpy()).mean(), abs=0.05)
    assert told > (grades.labels == labels.labels.numpy())[drawn].mean() + 0.05


def test_weights_are_inverse_chances_that_are_clipped():
    weights = label_weights([1, 0.5, 0.05, 0.01], 4)
    assert weights.mean() == pytest.approx(1)
    # Least chance over chance is 0.01, 0.02, 0.2, 1; those below a tenth are raised to it.
    assert weights / weights[3] == pytest.approx([0.1, 0.1, 0.2, 1])
    assert label_weights(None, 3).tolist() == [1, 1, 1]


def test_no_label_reaches_the_adapter_that_judges_it(model, digits):
    labels, _ = production(digits, 120)
    folds = np.arange(120) % 3
    other = labels.labels.clone()
    other[folds == 1] = (other[folds == 1] + 1) % 10
    how = {"weights": np.ones(120), **BUDGETS}
    fixed = partial(learn_from_labels, model, folds=folds, training=digits[0], **how)  # which fixes the augmentation
    first = fixed(labels).opinions
    second = fixed(TensorData(labels.inputs(range(120)), other, classes=labels.classes, value_range=(0, 1))).opinions
    assert torch.equal(first[folds == 1], second[folds == 1])
    assert not torch.allclose(first[folds == 0], second[folds == 0])


def test_an_interrupted_training_goes_on_where_it_was(model, digits, tmp_path):
    labels, _ = production(digits, 120)

    def storage(name):
        return Storage(tmp_path / f"{name}.safetensors", resume=True)

    def killed(name):
        if name == "fold1":
            raise KeyboardInterrupt
        return storage(name)

    run = partial(learn_from_labels, model, labels, np.arange(120) % 3, weights=np.ones(120), **BUDGETS)
    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(storage=killed)
    assert (tmp_path / "fold0.safetensors").exists()
    again = run(storage=storage)
    assert torch.equal(again.opinions, whole.opinions)
    state = again.adapted.adapter_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.adapted.adapter_state().items())


def test_original_data_are_mixed_in(grader, digits):
    labels, others = production(digits, 300)
    found = learned(grader, labels, data=digits[0], **BUDGETS)
    assert gain(grader, found.grader, others).high < 0
    assert found.grader.origin.data["mixed in"].samples == len(digits[0])


def test_the_flag_of_the_paper_stays_with_its_own_suspicion(model, digits):
    grader = fit_grader(views_alone(model, (Member("", MIRROR),)), digits[1], target=Disagreement())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PetmWarning)
        found = learn(grader, production(digits, 400)[0], **BUDGETS)
    assert not isinstance(found.target, Disagreement)


def replaced(data: Data, labels=None, classes=None) -> Data:
    images = data.inputs(range(len(data)))
    return TensorData(images, data.labels if labels is None else labels, classes=classes or data.classes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda labels: labels.subset(range(19)), "at least 20"),
        (lambda labels: replaced(labels, torch.zeros(60, dtype=torch.int64)), "two classes"),
        (lambda labels: Joined(labels, replaced(labels, (labels.labels + 1) % 10)), "one label for each input"),
        (lambda labels: replaced(labels, torch.full((60,), 11), tuple(map(str, range(12)))), "classes|labels"),
        (lambda labels: replaced(labels, torch.full((60,), -1)), "at least 20"),
        (lambda labels: replaced(labels, (labels.labels + 1) % 10), "order of the model's outputs"),
    ],
)
def test_bad_labels_are_one_line(grader, digits, change, match):
    labels, _ = production(digits, 60)
    with pytest.raises(DataError, match=match) as told:
        learned(grader, change(labels), **BUDGETS)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("chance", [np.ones(3), np.zeros(60), np.full(60, 1.5)])
def test_bad_chances_are_one_line(grader, digits, chance):
    with pytest.raises(ArgumentError, match=r"^chance:"):
        learned(grader, production(digits, 60)[0], chance=chance, **BUDGETS)


def test_labels_that_were_learned_from_never_judge_what_learned_from_them(grader, digits, tmp_path, monkeypatch):
    labels, others = production(digits, 500)
    first = learn(grader, labels.subset(range(150)), **BUDGETS)
    many = tuple(f"{number:016x}" for number in range(10_000))  # of labels before
    told = first.origin.data["labels"]
    data = {**first.origin.data, "labels": replace(told, hashes=(*told.hashes, *many))}
    first = replace(first, origin=replace(first.origin, data=data))
    first.save(tmp_path / "first.petm")
    first = load(tmp_path / "first.petm", grader.adapted.base)
    seen = []

    def spy(model, labelled, folds, **how):
        seen.append((len(labelled), folds))
        return learn_from_labels(model, labelled, folds, **how)

    monkeypatch.setattr("petm.learning.learn_from_labels", spy)
    found = learned(first, labels, **BUDGETS)
    assert (found.labels, found.judged) == (350, 350)
    (count, folds), *_ = seen
    assert (count, (folds < 0).sum()) == (500, 150)
    held = learned(first, labels, target=MaxRisk(0.2), **BUDGETS).grader.origin.data["calibration"]
    assert held.samples == 175
    # An own computation of what is among the 350: the present grader's AURC there.
    new = labels.subset(range(150, 500))
    grades = first.grade(new)
    told = {change.name: change.before for change in found.changes}["aurc"]
    assert told == pytest.approx(aurc(grades.suspicion, grades.labels != new.labels.numpy()), rel=1e-5)
    with pytest.raises(DataError, match=r"^labels: expected at least 20 .* learned from the 150 others"):
        learned(first, labels.subset(range(160)), **BUDGETS)
    with pytest.raises(DataError, match=r"^calibration: .* learned from"):
        learned(first, new, calibration=labels.subset(range(200)), target=MaxRisk(0.2), **BUDGETS)
    used = learned(first, new, calibration=Joined(labels.subset(range(150)), others), target=MaxRisk(0.2), **BUDGETS)
    assert used.judged == len(others)


def test_labels_of_suspects_alone_leave_threshold_and_probability_of_the_present_grader(grader, digits):
    labels = production(digits, 600, 1.0)[0]
    suspect = torch.from_numpy(~grader.grade(labels).trusted)
    with pytest.warns(PetmWarning, match=r"^labels: .* threshold stays"):
        found = learned(grader, labels.subset(suspect), drawn=False, **BUDGETS)
    assert found.grader.choice.name == PRESENT
    assert found.grader.threshold == grader.threshold
    assert found.grader.probability is grader.probability
    assert found.grader.origin.data == grader.origin.data


def test_labels_of_suspects_alone_give_no_probability_of_error(grader, digits, tmp_path):
    labels, others = production(digits, 600)
    suspect = torch.from_numpy(~grader.grade(labels).trusted)
    with pytest.warns(PetmWarning, match=r"^labels: .* probability of error is not known"):
        found = learned(grader, labels.subset(suspect), drawn=False, **BUDGETS)
    assert found.grader.choice.name != PRESENT
    found.grader.save(tmp_path / "b.petm")
    grades = load(tmp_path / "b.petm", grader.adapted.base).grade(others)
    assert np.isnan(grades.probability_of_error).all()


def test_the_folder_of_a_review_queue_is_no_random_sample(grader, digits, tmp_path):
    labels, _ = production(digits, 600)
    (tmp_path / "l.jsonl").write_text('{"sha256": "a", "label": 1, "confirmed": true, "suspicion": 0.9}\n')
    data = replaced(labels)
    data.source = str(tmp_path / "l.jsonl.images")
    with pytest.warns(PetmWarning, match=r"^target: .* no chance to be labelled"):
        found = learned(grader, data, target=MaxRisk(0.1), **BUDGETS)
    assert found.grader.threshold.confidence is None
