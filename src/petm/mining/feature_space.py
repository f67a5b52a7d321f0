"""FGSM where the opinions part instead of in the input: for samples that cannot be moved themselves, such as text."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.data import Data
from petm.error_set import Direction, ErrorSet, check_error_set, check_step, random_signs
from petm.errors import ArgumentError
from petm.features import FeatureStudent
from petm.fields import Inputs, one_tensor
from petm.inference import BATCH_SIZE, device_of, in_eval_mode
from petm.models import call_model, weights_fingerprint
from petm.parting import BEFORE, INSIDE, Parting, map_tensors
from petm.passes import Arguments, Pass
from petm.progress import track
from petm.replacement import Replaced


def fgsm_features(
    student: FeatureStudent, inputs: Inputs, labels: Tensor, *, epsilon: float, spread: Tensor | float = 1.0
) -> Tensor:
    """Returns adversarial examples in the feature space at the parting, as rows ``(n, R)`` that the student takes.

    ``f + epsilon * spread * sign(grad_f CE(A(f), y))``, ``f`` being all that crosses the parting of A's own pass over
    ``inputs``. What the base weights there make of ``f`` is computed anew, so that a row stays true to A. Text, whose
    token numbers cannot be moved, has features as images do. Nothing is clipped: features have no range of
    their own.

    Args:
        student: What `petm.features.cached_features` yields where the adapter starts late.
        inputs: ``(n, ...)``, samples as the model takes them.
        labels: int64 ``(n,)``, the true classes.
        epsilon: Step in units of ``spread``, at least 0; 0 gives the rows as they are.
        spread: float ``(F,)`` or longer, such as `feature_spread` gives, of which the first ``F`` are used; or one
            number for all.

    Raises:
        ArgumentError: ``epsilon`` is negative or not finite.

    Reference:
        Goodfellow, Shlens, Szegedy (2015), Explaining and Harnessing Adversarial Examples, section 4.
    """
    check_step(torch.empty(0), epsilon)
    return _moved_rows(student, inputs, epsilon, spread, _against(labels))


def replace_features(
    student: nn.Module,
    data: Data,
    rows: Data,
    errors: ErrorSet,
    *,
    epsilon: float,
    direction: Direction = "gradient",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Replaced:
    """Returns a view of ``rows`` in which those of the errors are replaced by their FGSM examples, label unchanged.

    What `petm.replacement.replace_errors` does to inputs, done to features: ``with cached_features(adapted, data,
    budget=...) as (student, rows)``, train the student on this view.

    Args:
        student: The adapter as a function of features, a `petm.features.FeatureStudent`.
        data: The samples in which ``errors`` were found.
        rows: Their features, as they came with the student.
        errors: What a source returned.
        epsilon: Step in standard deviations of each feature over ``rows``.
        direction: As in `petm.replacement.replace_errors`; ``random`` is the control.
        seed: Of the random signs.
        batch_size: Samples in one backward pass.

    Raises:
        ArgumentError: There is no student on features, or another argument breaks its rule.
    """
    if not isinstance(student, FeatureStudent):
        raise ArgumentError(
            f"student: expected a FeatureStudent, got {type(student).__name__}, whose adapter starts too early for "
            f"features. Adapt later layers, or replace the inputs: petm.replacement.replace_errors."
        )
    check_error_set(errors, data, direction)
    check_step(torch.empty(0), epsilon)
    device, spread, held = device_of(student), feature_spread(rows), one_tensor(rows.inputs([0]), "of features")
    signs = random_signs(len(errors), held.shape[1:], seed=seed) if direction == "random" else None
    parts = [held[:0]]
    with track("adversarial features", len(errors)) as progress:
        for start in range(0, len(errors), batch_size):
            chosen = errors.indices[start : start + batch_size]
            inputs, labels = data.inputs(chosen).to(device), data.labels[chosen].to(device)
            if signs is None:
                moved = fgsm_features(student, inputs, labels, epsilon=epsilon, spread=spread)
            else:
                drawn = signs[start : start + batch_size].to(device)
                moved = _moved_rows(student, inputs, epsilon, spread, _along(drawn))
            parts.append(moved.to("cpu", held.dtype))
            progress.advance(len(inputs))
    way = f"FGSM {epsilon}" if signs is None else f"random {epsilon}, seed {seed}"
    origin = f"{way} at {student.parting.module} of {weights_fingerprint(student.adapted.base)}"
    return Replaced(rows, errors.indices, torch.cat(parts), origin=origin)


def feature_spread(rows: Data, *, batch_size: int = 1024) -> Tensor:
    """Returns the standard deviation of each feature over all samples, float32 ``(R,)``, at least 0.

    Args:
        rows: ``(N, R)``, the features of ``N`` samples.
        batch_size: Rows read at once.
    """
    sums = squares = torch.zeros(())
    middle = one_tensor(rows.inputs([0]), "of features").double()  # near it, squares lose no digits
    for start in range(0, len(rows), batch_size):
        read = one_tensor(rows.inputs(range(start, min(start + batch_size, len(rows)))), "of features")
        part = read.double() - middle
        sums, squares = sums + part.sum(0), squares + part.square().sum(0)
    spread = (squares / len(rows) - (sums / len(rows)).square()).clamp(min=0).sqrt().float()
    return spread.nan_to_num(0, 0, 0)  # a mask of infinities is nothing to be moved


class _AtParting(Pass):
    """A's own pass, in which the features that cross the parting are noted, and can be differentiated by."""

    def __init__(self, parting: Parting, n: int) -> None:
        super().__init__(adapter="")
        self.parting, self.n = parting, n
        self.features: list[Tensor] = []

    def module_input(self, module: str, arguments: Arguments) -> Arguments:
        if self.parting.kind != BEFORE or module != self.parting.module:
            return arguments
        return map_tensors(arguments, lambda _, tensor: self._note(tensor))

    def adapted_layer(self, name: str, layer: Any, x: Tensor) -> Tensor:
        if self.parting.kind == INSIDE and name == self.parting.module:
            x = self._note(x)
        return super().adapted_layer(name, layer, x)

    def _note(self, tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != self.n:
            return tensor
        if not tensor.is_floating_point():
            self.features.append(tensor)
            return tensor
        self.features.append(tensor.detach().requires_grad_())
        return self.features[-1]


_Signs = Callable[[list[Tensor], Tensor], list[Tensor]]
"""From features and A's logits to the sign with which each feature moves."""


def _against(labels: Tensor) -> _Signs:
    """The signs that raise A's loss."""

    def signs(features: list[Tensor], logits: Tensor) -> list[Tensor]:
        loss = F.cross_entropy(logits, labels, reduction="sum")
        moving = [feature for feature in features if feature.requires_grad]
        found = iter(torch.autograd.grad(loss, moving, allow_unused=True, materialize_grads=True))
        return [next(found).sign() if feature.requires_grad else torch.zeros_like(feature) for feature in features]

    return signs


def _along(signs: Tensor) -> _Signs:
    """Given signs, ``(n, F)`` or more columns."""
    return lambda features, _: _split(signs, features)


def _moved_rows(
    student: FeatureStudent, inputs: Inputs, epsilon: float, spread: Tensor | float, direction: _Signs
) -> Tensor:
    """The rows of samples whose features went a step in a direction, which is found from them and from A's logits."""
    network: Any = student.adapted.network
    at_parting = _AtParting(student.parting, len(inputs))
    with in_eval_mode(network), torch.enable_grad():
        with at_parting.under_way():
            logits = call_model(network, inputs)
        features = at_parting.features
        signs = direction(features, logits)
    with torch.no_grad():
        steps = [torch.as_tensor(spread)] * len(features)
        if isinstance(spread, Tensor) and spread.ndim:
            steps = [step[0] for step in _split(spread.unsqueeze(0), features)]
        moved = [
            feature + epsilon * step.to(feature.device, feature.dtype) * sign
            for feature, step, sign in zip(features, steps, signs, strict=True)
        ]
        if student.parting.kind == INSIDE:
            moved.append(network.get_submodule(student.parting.module).base_layer(moved[0]))
        return torch.cat([tensor.flatten(1) for tensor in moved], 1)


def _split(rows: Tensor, features: list[Tensor]) -> list[Tensor]:
    """The columns of rows in the form of the features, one after the other; further columns are left over."""
    widths = [feature[0].numel() for feature in features]
    parts = rows[:, : sum(widths)].split(widths, 1)
    return [part.unflatten(1, feature.shape[1:]) for part, feature in zip(parts, features, strict=True)]
