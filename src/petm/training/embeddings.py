"""FGSM for text: at the output of a named module, because tokens themselves cannot be moved."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm.data.fields import Fields, shared_place, width_of
from petm.errors import ArgumentError, ModelError
from petm.models.answers import of_one_length, same_length
from petm.models.loading import call_model
from petm.models.penultimate import linear_input
from petm.models.prediction import in_eval_mode
from petm.training.error_set import gradient_of


def embedding_of(model: nn.Module, inputs: Fields) -> str:
    """Returns the name of the embedding of tokens: the first one called with one of the inputs themselves.

    Where none is, it is the first one called at all; others may be embeddings of positions.

    Raises:
        ArgumentError: The model calls no embedding.
    """
    one = same_length(model, inputs)
    assert isinstance(one, Fields)
    ids = [tensor for name, tensor in one.items() if name not in ("attention_mask", "token_type_ids")]
    tokens, others = list[str](), list[str]()

    def note(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x: object = linear_input(given, named)  # some embeddings of positions take a shape
        itself = isinstance(x, Tensor) and any(torch.equal(x, tensor) for tensor in ids)
        (tokens if itself else others).append(name)

    handles = [
        module.register_forward_pre_hook(lambda _, given, named, name=name: note(name, given, named), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        with in_eval_mode(model), torch.no_grad():
            call_model(model, one)
    finally:
        for handle in handles:
            handle.remove()
    if not (tokens or others):
        raise ArgumentError("at: expected a model with an embedding, or the name of a module to perturb, got neither.")
    return (tokens or others)[0]


def fgsm_step(model: nn.Module, inputs: Fields, labels: Tensor, *, at: str, epsilon: float) -> Tensor:
    """Returns the FGSM step at the output ``h`` of a module, ``epsilon * sign(grad_h CE(A(x), y))``.

    As the field ``+MODULE`` of the inputs it is added in every later call (`petm.models.loading.call_model`).

    Args:
        model: The base model.
        inputs: ``n`` samples.
        labels: int64 ``(n,)``, the true classes.
        at: The module's name.
        epsilon: Step in units of the module's output, at least 0.

    Returns:
        float16, in the shape of the module's output.

    Raises:
        ArgumentError: There is no such module, it is not called, or its output is not one float tensor ``(n, ...)``.

    Reference:
        Goodfellow, Shlens, Szegedy (2015), section 4; Miyato, Dai, Goodfellow (2017), Adversarial Training Methods for
        Semi-Supervised Text Classification, section 3.
    """
    if parts := of_one_length(model, inputs):
        steps = [fgsm_step(model, part.inputs, labels[part.rows], at=at, epsilon=epsilon) for part in parts]
        whole = steps[0].new_zeros((len(inputs), width_of(inputs), *steps[0].shape[2:]))
        for part, step in zip(parts, steps, strict=True):
            whole[part.rows, part.place] = step
        return whole
    if place := shared_place(inputs):
        step = fgsm_step(model, inputs.cut(place), labels, at=at, epsilon=epsilon)
        if step.ndim < 2 or step.shape[1] != place.stop - place.start:  # it has no tokens
            return step
        whole = step.new_zeros((len(inputs), width_of(inputs), *step.shape[2:]))
        whole[:, place] = step
        return whole
    with in_eval_mode(model, freeze=True), torch.enable_grad():
        logits, output = output_of(model, inputs, at)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        gradient = gradient_of(loss, output, f"the output of {at!r}")
    mask = dict(inputs.items()).get("attention_mask")
    if mask is not None and gradient.ndim > 2 and gradient.shape[1] > mask.shape[1]:  # Longformer's windows
        raise ModelError(
            f"model: expected {mask.shape[1]} tokens in the output of {at!r}, as the text has, got "
            f"{gradient.shape[1]}, padded by the model itself. Take a recipe without FGSM."
        )
    return (epsilon * gradient.sign()).to(torch.float16)


def output_spread(model: nn.Module, inputs: Fields, at: str) -> float:
    """Returns the standard deviation of all numbers in a module's output, and raises the errors of `fgsm_step`."""
    one = same_length(model, inputs)
    assert isinstance(one, Fields)
    with in_eval_mode(model), torch.no_grad():
        return float(output_of(model, one, at)[1].float().std())


def output_of(model: nn.Module, inputs: Fields, at: str) -> tuple[Tensor, Tensor]:
    """The base model's logits, and the output of a module on the way, by which they can be differentiated."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != inputs.shape:
            raise ArgumentError(f"at: expected a module with one float output (N, ...), got {at!r}. Name another.")
        seen.append(output.detach().requires_grad_(torch.is_grad_enabled()))
        return seen[-1].clone()  # the model may write into it

    try:
        handle = model.get_submodule(at).register_forward_hook(note)
    except AttributeError as error:
        raise ArgumentError(f"at: expected the name of a module of the model, got {at!r}.") from error
    try:
        logits = call_model(model, inputs)
    finally:
        handle.remove()
    if not seen:
        raise ArgumentError(f"at: expected a module that is called, got {at!r}. Name another.")
    return logits, seen[0]
