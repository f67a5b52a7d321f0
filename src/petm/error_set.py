"""Where A is wrong, what FGSM makes of it, and the data set in which A's errors are replaced."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.data import Data, as_data
from petm.errors import ArgumentError
from petm.files import fingerprint
from petm.inference import BATCH_SIZE, check_labels, device_of, in_eval_mode, predict_logits
from petm.models import call_model, weights_fingerprint
from petm.progress import track


@dataclass(frozen=True, eq=False)
class ErrorSet:
    """The samples that A gets wrong.

    Attributes:
        indices: int64 ``(E,)``, ascending positions in the data set.
        predictions: int64 ``(E,)``, what A says of them.
        total: ``N``, how many samples were looked at.
    """

    indices: Tensor
    predictions: Tensor
    total: int

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"ErrorSet({len(self)} of {self.total} samples)"


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
        ArgumentError: ``epsilon`` is negative or not finite.

    Reference:
        Goodfellow, Shlens, Szegedy (2015), Explaining and Harnessing Adversarial Examples, section 4.
    """
    if not 0 <= epsilon < float("inf"):
        raise ArgumentError(f"epsilon: expected a finite number of at least 0, got {epsilon}.")
    with in_eval_mode(model), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        loss = F.cross_entropy(call_model(model, inputs), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
    return (inputs.detach() + epsilon * gradient.sign()).clamp(*value_range)


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
    model: nn.Module, data: Data, errors: ErrorSet, *, epsilon: float, batch_size: int = BATCH_SIZE
) -> Replaced:
    """Returns a view of ``data`` in which each of A's errors is replaced by its FGSM example, label unchanged.

    The view with only the errors in it is ``replace_errors(...).subset(errors.indices)``.

    Args:
        model: A.
        data: The samples in which ``errors`` were found.
        errors: What `find_errors` returned.
        epsilon: FGSM step in units of the inputs.
        batch_size: Samples in one backward pass.

    Raises:
        ArgumentError: ``errors`` belongs to another data set, or ``epsilon`` breaks its rule.

    Reference:
        LoRA-PETM (ACK 2025), section 2.1.
    """
    data = as_data(data)
    if errors.total != len(data):
        raise ArgumentError(f"errors: expected an error set of these {len(data)} samples, got {errors}.")
    device, parts = device_of(model), []
    with track("adversarial examples", len(errors)) as progress:
        for indices in errors.indices.split(batch_size):
            inputs, labels = data.inputs(indices).to(device), data.labels[indices].to(device)
            parts.append(fgsm(model, inputs, labels, epsilon=epsilon, value_range=data.value_range).cpu())
            progress.advance(len(indices))
    replacements = torch.cat(parts) if parts else data.inputs([0])[:0]
    return Replaced(data, errors.indices, replacements, origin=f"FGSM {epsilon} on {weights_fingerprint(model)}")
