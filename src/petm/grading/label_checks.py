"""Labelled samples, checked against the model before anything is fitted or calibrated on them."""

import torch
from torch import nn

from petm._internal.distributed import group
from petm._internal.files import plain
from petm._internal.progress import note
from petm._internal.records import Json
from petm.data.base import Data
from petm.data.fields import Fields, tensors_of
from petm.errors import DataError
from petm.grading.grades import check_inputs
from petm.grading.input_profile import describe_inputs
from petm.grading.provenance import InputOrigin
from petm.models.hf_classifier import names_of
from petm.models.loading import call_model
from petm.models.prediction import check_labels, device_of, evaluating, predict_logits
from petm.models.probe import probe
from petm.training.preflight import Answers, compare_answers

_MOST_ANSWERS = 2000
"""Most samples of a set on which the base model's accuracy is measured before the training."""


def answers_to_some(model: nn.Module, data: Data, seed: int) -> Answers:
    """Returns the base model's predictions for at most 2,000 samples, drawn at random."""
    some = some_of(data, _MOST_ANSWERS, seed)
    logits = predict_logits(model, some, title="check the labels")
    return Answers(logits.argmax(1), some.labels, logits.shape[1], data.classes, data.source)


def check_accuracy(data: Answers | None, calibration: Answers, *, force: bool) -> dict[str, Json]:
    """Returns the base model's accuracies by name, after saying them and checking that the labels are the model's."""
    found = ({"data": data} if data else {}) | {"calibration": calibration}
    rights = {argument: answers.accuracy for argument, answers in found.items()}
    if group().is_main:
        parts = (f"{right.value:.1%} of {right.of:,} samples of {argument}" for argument, right in rights.items())
        note(f"The model is right on {' and '.join(parts)}.")
    for argument, answers in found.items() if not force else ():
        answers.check(argument, like=data if answers is not data else None)
    if data:
        compare_answers(data, calibration)
    told: dict[str, Json] = plain({f"accuracy_on_{argument}": right for argument, right in rights.items()})
    return told


def check_data(model: nn.Module, data: Data, argument: str, *, force: bool, probing: bool = False) -> None:
    """Checks labels and class names against the outputs of the model, found with one sample, and their names.

    ``probing`` first finds out how the model is called and its answer read.
    """
    source = f"{argument} ({data.source})"
    if not len(data):
        raise DataError(f"{source}: expected at least one sample, got none.")
    if probing:
        probe(model, data)
    with evaluating(model):
        classes = call_model(model, data.inputs([0]).to(device_of(model))).shape[1]
    check_labels(data.labels, classes, source)
    if len(data.classes) not in (0, classes):
        raise DataError(
            f"{source}: expected {classes} class names, one for each output of the model, got "
            f"{len(data.classes)}: {', '.join(data.classes[:12])}. Name those of the model in their order."
        )
    own = names_of(model)
    places = {name.strip().casefold(): place for place, name in enumerate(own)}
    moved = [name for place, name in enumerate(data.classes) if places.get(name.strip().casefold(), place) != place]
    if moved and not force:
        raise DataError(
            f"{source}: expected the classes in the order of the model's outputs, {', '.join(own[:12])}, got "
            f"{', '.join(data.classes[:12])}. Name them in that order, or go on with force=True (--force)."
        )


def check_alike(data: Data, calibration: Data) -> None:
    """Checks that the calibration set has the same classes and shapes as the data."""
    check_classes(calibration, data.classes, data.source)
    if len(calibration) and (one := _form(data)) != (other := _form(calibration)):
        raise DataError(
            f"calibration ({calibration.source}): expected inputs like those of {data.source}, {one}, got {other}."
        )
    check_inputs(calibration, InputOrigin(profile=describe_inputs(data)), f"calibration ({calibration.source})")


def check_classes(calibration: Data, classes: tuple[str, ...], owner: str) -> None:
    """Raises DataError where a calibration set names other classes than its owner, such as the data of the fit."""
    if classes and calibration.classes and classes != calibration.classes:
        raise DataError(
            f"calibration ({calibration.source}): expected the classes of {owner}, {', '.join(classes[:12])}, got "
            f"{', '.join(calibration.classes[:12])}. Name those of the model in their order."
        )


def bytes_of(data: Data) -> int:
    """Bytes of the decoded samples, all like the first."""
    return len(data) * sum(tensor.nbytes for tensor in tensors_of(data.inputs([0])))


def _form(data: Data) -> tuple[int, ...] | tuple[str, ...]:
    """The shape of a sample; for fields their names, since texts differ in length."""
    x = data.inputs([0])
    return tuple(sorted(x.keys())) if isinstance(x, Fields) else tuple(x.shape[1:])


def some_of(data: Data, most: int, seed: int) -> Data:
    """At most so many samples of the data, drawn at random."""
    if len(data) <= most:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:most])
