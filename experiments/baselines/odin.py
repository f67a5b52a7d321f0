"""ODIN: a small step of the input towards its own answer, which helps right predictions more than wrong ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.baselines.protocol import Baseline, Learned, Seen
from petm._internal.progress import track
from petm.data.fields import one_tensor
from petm.errors import NothingToLearnError
from petm.models.loading import call_model, share_weights
from petm.models.prediction import batches, device_of
from petm.models.scores import second_opinion
from petm.selective.metrics import auroc


@dataclass(frozen=True)
class Odin(Baseline):
    """Suspicion is ``1 - p_T(c)`` at ``x + epsilon * sign(grad_x log p_T(c | x))``, ``p_T = softmax(z / T)``.

    Temperature and step are those of the highest AUROC for the base model's errors on the calibration data; of equal
    ones, the smaller. Made for inputs of a foreign kind; here it grades the base model's predictions.

    Args:
        temperatures: Candidates for ``T``.
        epsilons: Candidates for the step, as shares of the range of the inputs.

    Reference:
        Liang, Li, Srikant (2018), Enhancing the Reliability of Out-of-distribution Image Detection, section 3.
    """

    temperatures: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    epsilons: tuple[float, ...] = (0.0, 0.0005, 0.001, 0.002, 0.004)

    name = "odin"
    title = "ODIN"
    source = "Liang, Li, Srikant (2018)"
    fitted_on = "calibration"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        wrong = int(calibration.wrong.sum())
        if not 0 < wrong < len(calibration):
            raise NothingToLearnError(
                f"calibration: expected samples that the model gets wrong and samples that it gets right, got "
                f"{wrong} wrong "
                f"of {len(calibration)}. Use more calibration data."
            )
        best, temperature, epsilon = -1.0, 0.0, 0.0
        for t in sorted(self.temperatures):
            for e, suspicion in zip(
                sorted(self.epsilons), perturbed_suspicion(calibration, t, sorted(self.epsilons)), strict=True
            ):
                if (found := auroc(suspicion, calibration.wrong)) > best:
                    best, temperature, epsilon = found, t, e
        chosen = {"temperature": temperature, "epsilon": epsilon}
        return Learned(lambda seen: perturbed_suspicion(seen, temperature, [epsilon])[0], 2, chosen)


def perturbed_suspicion(seen: Seen, temperature: float, epsilons: list[float]) -> Tensor:
    """Returns ``1 - p_T(c)`` at the perturbed inputs, float64 ``(E, N)``, a row for each of ``E`` steps.

    A step of 0 needs no gradient, and no pass but the base model's own. Else ``c`` is taken from the pass that gives
    the gradient, so that the base model need not run a third time without one.

    Args:
        seen: What the base model says of ``N`` samples.
        temperature: ``T``, above 0.
        epsilons: Steps as shares of the range of the inputs, at least 0.
    """
    low, high = seen.data.value_range
    sizes = [epsilon * (high - low) for epsilon in epsilons if epsilon]
    moved = iter(torch.cat(list(_moved(seen, temperature, sizes)), dim=1) if sizes else ())
    return torch.stack(
        [
            next(moved) if epsilon else second_opinion(seen.logits, seen.logits.double() / temperature)
            for epsilon in epsilons
        ]
    )


def _moved(seen: Seen, temperature: float, sizes: list[float]) -> Iterator[Tensor]:
    """Suspicion at each size of step, ``(len(sizes), n)``, batch by batch."""
    network = share_weights(seen.model)
    with track("perturbed inputs", len(seen)) as progress:
        for batch, _ in batches(seen.data, device_of(network), seen.batch_size):
            inputs = one_tensor(batch, "to perturb")
            base, direction = _towards_the_answer(network, inputs, temperature)
            with torch.no_grad():
                second = [call_model(network, inputs + size * direction).cpu() for size in sizes]
            yield torch.stack([second_opinion(base, logits.double() / temperature) for logits in second])
            progress.advance(len(inputs))


def _towards_the_answer(network: nn.Module, inputs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The base model's logits, and ``sign(grad_x log p_T(c | x))`` of the shape of the inputs.

    The softmax is taken in float64, on the CPU, which always has it: in float32 the gradient of a sure prediction is 0.
    """
    with torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        logits = call_model(network, inputs).cpu()
        log_p = (logits.double() / temperature).log_softmax(1)
        log_p.gather(1, logits.argmax(1, keepdim=True)).sum().backward()
    assert inputs.grad is not None
    return logits.detach(), inputs.grad.sign()
