"""Where A is wrong, what FGSM makes of it, and the data set in which A's errors are replaced."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.data import Data, as_data
from petm.errors import ArgumentError
from petm.files import fingerprint
from petm.inference import BATCH_SIZE, check_labels, device_of, in_eval_mode, predict_logits
from petm.models import call_model, weights_fingerprint
from petm.progress import track

Direction = Literal["gradient", "random"]
"""Where a replaced error moves: against A, or anywhere, which is the control for that idea."""


@dataclass(frozen=True, eq=False)
class ErrorSet:
    """The samples that A gets wrong; or those that take their place where A makes too few errors (`petm.mining`).

    Attributes:
        indices: int64 ``(E,)``, ascending positions in the data set.
        predictions: int64 ``(E,)``, what A says of them; or what another judge says that has found them.
        total: ``N``, how many samples were looked at.
        source: How they were found: ``plain`` for A's own errors, else a name of `petm.mining.SOURCES`.
    """

    indices: Tensor
    predictions: Tensor
    total: int
    source: str = "plain"

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        found = "" if self.source == "plain" else f", {self.source}"
        return f"ErrorSet({len(self)} of {self.total} samples{found})"


def find_errors(model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE) -> ErrorSet:
    """Returns the samples that A gets wrong by plain prediction.

    Args:
        model: A.
        data: ``N`` labelled samples, usually those that A was trained on; or whatever `petm.data.as_data` takes.
        batch_size: Samples in one forward pass.

    Raises:
        DataError: A label is missing or outside 0..K-1, only one class is present, or a sample is not finite.
        ModelError: The model cannot take the samples, or does not return ``(N, K)``.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310; LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    logits = predict_logits(model, data, batch_size=batch_size, title="find errors")
    check_labels(data.labels, logits.shape[1], data.source)
    predictions = logits.argmax(1)
    indices = (predictions != data.labels).nonzero().flatten()
    return ErrorSet(indices, predictions[indices], len(data))


def fgsm(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, epsilon: float, value_range: tuple[float, float]
) -> Tensor:
    """Returns adversarial examples of the fast gradient sign method, float32 ``(n, C, H, W)``.

    ``clip(x + epsilon * sign(grad_x CE(A(x), y)))``: the step of size epsilon in every pixel that raises A's loss
    fastest to first order. A is in eval mode meanwhile and is left as it was; no gradient is left on its weights.

    Args:
        model: A.
        inputs: float32 ``(n, C, H, W)``.
        labels: int64 ``(n,)``, the true classes.
        epsilon: Step in units of the inputs, at least 0.
        value_range: Least and greatest value that the result may take.

    Raises:
        ArgumentError: ``epsilon`` is negative or not finite, or the inputs are no floats.

    Reference:
        Goodfellow, Shlens, Szegedy (2015), Explaining and Harnessing Adversarial Examples, section 4.
    """
    check_step(inputs, epsilon)
    with in_eval_mode(model), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        loss = F.cross_entropy(call_model(model, inputs), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
    return (inputs.detach() + epsilon * gradient.sign()).clamp(*value_range)


def check_step(inputs: Tensor, epsilon: float) -> None:
    """Checks that inputs can be moved by epsilon.

    Raises:
        ArgumentError: ``epsilon`` is negative or not finite, or the inputs are no floats.
    """
    if not 0 <= epsilon < float("inf"):
        raise ArgumentError(f"epsilon: expected a finite number of at least 0, got {epsilon}.")
    if not inputs.is_floating_point():
        raise ArgumentError(
            f"inputs: expected floats, which can be moved by a step, got {inputs.dtype}. "
            f"Move the features of such samples: petm.mining.replace_features."
        )


def random_signs(count: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Returns int8 ``(count, *shape)``: +1 and -1, equally likely and independent, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, *shape), generator=generator, dtype=torch.int8).mul_(2).sub_(1)


def check_error_set(errors: ErrorSet, data: Data, direction: str = "gradient") -> None:
    """Checks that errors were found in ``data``, and that there is such a direction.

    Raises:
        ArgumentError: They were not, or there is none.
    """
    if errors.total != len(data):
        raise ArgumentError(f"errors: expected an error set of these {len(data)} samples, got {errors}.")
    if direction not in get_args(Direction):
        raise ArgumentError(f"direction: expected 'gradient' or 'random', got {direction!r}.")


class Replaced(Data):
    """A view of a data set in which some inputs are replaced; only the replacements are held.

    Args:
        data: The samples.
        indices: int64 ``(E,)``, which inputs are replaced.
        replacements: float32 ``(E, C, H, W)``.
        origin: What made the replacements, in words or as a hash; it enters `content`.
    """

    def __init__(self, data: Data, indices: Tensor, replacements: Tensor, *, origin: str) -> None:
        self.data, self.indices, self.replacements, self.origin = data, indices, replacements, origin
        self.labels, self.classes = data.labels, data.classes
        self.value_range, self.source = data.value_range, data.source
        self._place = torch.full((len(data),), -1)
        self._place[indices] = torch.arange(len(indices))

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns float32 ``(n, C, H, W)``: the inputs at ``indices``, replaced where they are to be."""
        place = self._place[torch.as_tensor(indices, dtype=torch.int64)]
        (replaced,) = (place >= 0).nonzero(as_tuple=True)
        return self.data.inputs(indices).index_copy(0, replaced, self.replacements[place[replaced]])

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content, the replaced positions and what made the replacements."""
        return fingerprint((self.data.content, self.indices, self.origin))

    def name(self, index: int) -> str:
        """Returns the sample's name in the data set that this is a view of."""
        return self.data.name(index)


def replace_errors(
    model: nn.Module,
    data: Data,
    errors: ErrorSet,
    *,
    epsilon: float,
    direction: Direction = "gradient",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Replaced:
    """Returns a view of ``data`` in which each of A's errors is replaced by its FGSM example, label unchanged.

    The view with only the errors in it is ``replace_errors(...).subset(errors.indices)``.

    Args:
        model: A.
        data: The samples in which ``errors`` were found.
        errors: What `find_errors` or a source of `petm.mining` returned.
        epsilon: FGSM step in units of the inputs.
        direction: ``gradient``, the sign of the gradient of A's loss, which is FGSM; or ``random``, a random sign for
            every number of the input: the control, whose samples lie as far away, but in no direction that A minds.
        seed: Of the random signs.
        batch_size: Samples in one backward pass.

    Raises:
        ArgumentError: ``errors`` belongs to another data set, or another argument breaks its rule.

    Reference:
        LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    check_error_set(errors, data, direction)
    device, parts = device_of(model), [data.inputs([0])[:0]]
    check_step(parts[0], epsilon)
    signs = random_signs(len(errors), parts[0].shape[1:], seed=seed) if direction == "random" else None
    with track("adversarial examples", len(errors)) as progress:
        for start in range(0, len(errors), batch_size):
            rows = slice(start, start + batch_size)
            inputs, labels = data.inputs(errors.indices[rows]), data.labels[errors.indices[rows]].to(device)
            if signs is None:
                parts.append(
                    fgsm(model, inputs.to(device), labels, epsilon=epsilon, value_range=data.value_range).cpu()
                )
            else:
                parts.append((inputs + epsilon * signs[rows]).clamp(*data.value_range))
            progress.advance(len(inputs))
    origin = f"FGSM {epsilon} on {weights_fingerprint(model)}" if signs is None else f"random {epsilon}, seed {seed}"
    return Replaced(data, errors.indices, torch.cat(parts), origin=origin)
