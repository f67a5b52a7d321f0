"""From a trained model and labelled data to a grader, in one call."""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from petm.adapter import attach_adapter
from petm.data import Data, as_data
from petm.distillation import distill
from petm.error_set import find_errors, replace_errors
from petm.errors import ArgumentError
from petm.grader import Grader, fit_grader
from petm.inference import Precision, choose_device
from petm.provenance import Origin, describe_data
from petm.run_folder import RunFolder
from petm.twin import require_errors, train_twin


def fit(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float = 0.2,
    layers: Mapping[str, int] | None = None,
    max_extra_parameters: float = 0.02,
    max_risk: float | None = None,
    confidence: float = 0.95,
    epsilon: float = 0.1,
    twin_epochs: int = 2,
    epochs: int = 20,
    batch_size: int = 128,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    device: str = "auto",
    origin: Origin | None = None,
    run: RunFolder | None = None,
) -> Grader:
    """Returns a grader for a trained model: error set, twin, adapter, distillation and threshold in one sequence.

    Args:
        model: A; it stays as it is, but is moved to ``device``.
        data: Labelled samples, best those that A was trained on.
        calibration: Labelled samples that A has *not* seen, on which the threshold is set; or the share of ``data`` to
            hold out for that. A looks better on its own training data than it is, so a threshold set on a share of
            them promises too much: pass fresh samples where there are any.
        layers: The rank of each layer to adapt; absent chooses them by the drift between A and A'.
        max_extra_parameters: Then, the adapter's budget as a share of A's parameters.
        max_risk: As in `petm.grader.fit_grader`; absent flags disagreement, as the paper does.
        confidence: As there.
        epsilon: FGSM step in units of the inputs.
        twin_epochs: Passes of A' over the data.
        epochs: At most this many passes of the distillation, which stops early.
        batch_size: Samples in one step.
        seed: Of everything.
        precision: Of the matrix products in training.
        cache_budget: Bytes of memory for features that are computed once, as in `petm.distillation.distill`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        origin: How A is built again, for the bundle.
        run: Where the trainings leave their checkpoints.

    Raises:
        NothingToLearnError: A makes no errors on ``data``.
        ArgumentError: An argument breaks its rule.
        DataError: Labels are missing or outside 0..K-1, or only one class is present.
    """
    data = as_data(data)
    if isinstance(calibration, float):
        if not 0 < calibration < 1:
            raise ArgumentError(f"calibration: expected data or a share between 0 and 1, got {calibration}.")
        data, calibration = data.split((1 - calibration, calibration), seed=seed)
    model.to(choose_device(device))
    errors = find_errors(model, data)
    require_errors(errors)
    twin = train_twin(
        model,
        data,
        errors,
        epsilon=epsilon,
        epochs=twin_epochs,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        storage=run.storage("twin") if run else None,
        device=device,
    )
    adapted = attach_adapter(model, layers, twin=twin, max_extra_parameters=max_extra_parameters, seed=seed)
    distill(
        adapted,
        teacher=twin,
        data=replace_errors(model, data, errors, epsilon=epsilon),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        cache_budget=cache_budget,
        storage=run.storage("adapter") if run else None,
        device=device,
    )
    told = {
        "epsilon": epsilon,
        "twin_epochs": twin_epochs,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "training_errors": len(errors),
    }
    used = {"train": describe_data(data), "calibration": describe_data(calibration)}
    origin = replace(origin or Origin(), data=used, settings=told)
    return fit_grader(adapted, calibration, max_risk=max_risk, confidence=confidence, origin=origin)
