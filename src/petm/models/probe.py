"""What a model does that is not assumed: a few passes over one small batch, before anything is trained."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from petm.data.base import Data, check_finite
from petm.data.fields import Fields, Inputs, tensors_of
from petm.errors import ModelError, PetmWarning
from petm.models.answers import Part, joined, last_operation, parts_by_length, remember, with_kind
from petm.models.loading import answer_of
from petm.models.placing import use_one_kernel
from petm.models.prediction import device_of, evaluating
from petm.models.reading import Reading

SAMPLES, SAMPLES_OF_ONE_NUMBER = 8, 256
"""Samples in the probe; and in a further pass over a model that gives one number each, to tell its kind."""
_OF_SPREAD = 1e-3
"""A difference below this share of the spread between samples is of no consequence."""
_KINDS = {
    "probabilities": "probabilities: petm takes their logarithms as logits",
    "logit": "one number a sample: petm takes it as the logit of the second of two classes",
    "probability": "one number in [0, 1] a sample: petm takes it as the probability of the second of two classes",
}


def check_module(model: object) -> None:
    """Raises ModelError where a model is of a kind that cannot have adapters, whatever it answers.

    One that can have them computes alike with and without gradients from here on (`use_one_kernel`).
    """
    if not isinstance(model, nn.Module):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ModelError(f"model: expected a torch.nn.Module, got {kind}. Wrap it in one.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "model: expected a module in Python, got a ScriptModule, whose layers cannot have an adapter. "
            "Pass the module that it was made from."
        )
    compiled = [name for name, module in model.named_modules() if _is_compiled(module)]
    if compiled:
        raise ModelError(
            f"model: expected a module that is not compiled, got {compiled[0] or 'one'} from torch.compile. "
            f"Pass the module that was compiled."
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        away = getattr(model, "hf_device_map", None)
        step = f"Load it on fewer or other devices than {away!r:.200}" if away else "Load its weights"
        raise ModelError(f"model: expected weights with values, got {empty} on the meta device. {step}.")
    use_one_kernel(model)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def probe(model: nn.Module, data: Data) -> Reading:
    """Returns how a model is called and its answer read, and remembers it for every later call of the model.

    Two passes over one batch must agree, and so must a pass over each half: a sample's answer depends on that sample
    alone. A model that writes into its input gets copies from here on; one whose answer changes with padding gets texts
    one length at a time; probabilities become logits. Each is said once, in a warning.

    Args:
        model: The base model, on its device; it is left as it was.
        data: At least one sample.

    Raises:
        ModelError: The model is no module that can have adapters, changes its own state, or gives other answers to
            equal inputs or beside other samples; the module that does it is named.
    """
    check_module(model)
    remember(model, Reading())
    held = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    with evaluating(model), torch.random.fork_rng(devices=[]):
        try:
            reading = _Probe(model, data).reading()
        finally:
            changed = [name for name, tensor in model.named_buffers() if _restored(tensor, held.get(name))]
    kept = model.state_dict().keys()
    if lost := next((name for name in changed if name in kept), None):
        raise ModelError(
            f"model: expected one that stays as it is in eval mode, got one that changes {lost}. "
            f"Let the module update its state in training mode only."
        )
    remember(model, reading)
    return reading


def _restored(tensor: Tensor, before: Tensor | None) -> bool:
    """Whether a buffer has changed and is now as before."""
    if before is None or before.shape != tensor.shape or torch.equal(_bits(tensor), _bits(before)):
        return False
    tensor.copy_(before)
    return True


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


class _Probe:
    """The passes over a batch."""

    def __init__(self, model: nn.Module, data: Data) -> None:
        self.model, self.data = model, data
        modules = model.named_modules()
        self.names = {module: name for name, module in modules if not isinstance(module, torch.jit.ScriptModule)}
        self.found = Reading()

    def reading(self) -> Reading:
        """Returns how the model's answer is read."""
        x = self._some(SAMPLES)
        n = x.shape[0]
        answer = self._first(x)
        if answer.isnan().any():
            raise ModelError(f"model: expected numbers, got NaN for {self.data.source}. Check its weights.")
        allowed = _tolerance(answer)
        if _distance(answer, self._answer(x)) > allowed:
            culprit = self._culprit(x, x, slice(n))
            raise ModelError(
                f"model: expected equal answers to equal inputs, got others each time from {culprit}. "
                f"Turn off in eval mode what is random."
            )
        for half in (slice(0, n // 2), slice(n // 2, n)):
            if 0 < (part := x[half]).shape[0] < n and _distance(answer[half], self._answer(part)) > allowed:
                raise ModelError(
                    f"model: expected an answer that depends on its sample alone, got another beside other samples "
                    f"from {self._culprit(part, x, half)}. Use statistics of the training data in eval mode."
                )
        parts = parts_by_length(self.model, x) if isinstance(x, Fields) else []
        if parts and _distance(answer, self._apart(parts)) > allowed:
            _say("answers otherwise where a text is padded: texts run without padding, one length at a time")
            self.found = replace(self.found, by_length=True)
        unsure = answer[0].numel() == 1 or bool(((answer >= 0) & (answer <= 1)).all())
        self.found = with_kind(self.found, self._many() if unsure else answer, self._operation(x) if unsure else "")
        if self.found.kind in _KINDS:
            _say(f"answers with {_KINDS[self.found.kind]}")
        return self.found

    def _some(self, most: int) -> Inputs:
        n = len(self.data)
        rows = torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).long()
        x = self.data.inputs(rows)
        check_finite(x, self.data.source)
        return x.to(device_of(self.model))

    def _first(self, x: Inputs) -> Tensor:
        """The first answer; notes where it stands, and whether the model writes into its input."""
        given, writers = _copy(x), list[str]()

        def note(name: str, _: object) -> None:
            if not writers and not _equal(given, x):
                writers.append(name)

        with self._watching(lambda _, __: None, note):
            place, answer = answer_of(self.model, given, x.shape[0], self.found)
        answer, written = answer.clone(), not _equal(given, x)
        if written:
            _say(f"writes into its input, in {self._called(writers[0] if writers else '')}: petm gives it copies")
        self.found = replace(self.found, place=place, copied=written)
        return answer

    def _answer(self, x: Inputs) -> Tensor:
        return answer_of(self.model, x, x.shape[0], self.found)[1].clone()

    def _apart(self, parts: Sequence[Part]) -> Tensor:
        return joined(parts, [self._answer(part.inputs) for part in parts])

    def _many(self) -> Tensor:
        """The answers for more samples."""
        x = self._some(SAMPLES_OF_ONE_NUMBER)
        parts = parts_by_length(self.model, x) if self.found.by_length and isinstance(x, Fields) else []
        return self._apart(parts) if parts else self._answer(x)

    def _operation(self, x: Inputs) -> str:
        """PyTorch's name of the model's last operation."""
        with torch.enable_grad():
            x = x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
            return last_operation(self._answer(x))

    def _culprit(self, part: Inputs, x: Inputs, rows: slice) -> str:
        """The module in which a pass over some rows first differs from one over all."""
        n = x.shape[0]
        for (module, one), (_, other) in zip(self._trace(part), self._trace(x), strict=False):
            other = other[rows] if other.ndim and other.shape[0] == n else other
            if one.shape != other.shape:
                continue  # it does not follow the batch
            if _distance(one, other) > _tolerance(one):
                return self._called(module)
        return self._called("")

    def _trace(self, x: Inputs) -> list[tuple[str, Tensor]]:
        """The float tensors into and out of each module, in order, each with the module that made it."""
        seen, open_modules = list[tuple[str, Tensor]](), [""]

        def note(maker: str, values: object) -> None:
            seen.extend((maker, tensor.clone()) for tensor in _floats_in(values))

        def enter(name: str, values: object) -> None:
            note(open_modules[-1], values)
            open_modules.append(name)

        def leave(name: str, output: object) -> None:
            open_modules.pop()
            note(name, output)

        with self._watching(enter, leave):
            self._answer(x)
        return seen

    @contextmanager
    def _watching(self, enter: Callable[[str, object], None], leave: Callable[[str, object], None]) -> Iterator[None]:
        """Calls two functions before and after each module with its name, and its arguments or its output."""
        with ExitStack() as stack:
            for module, name in self.names.items():
                before = module.register_forward_pre_hook(
                    lambda _, given, named, name=name: enter(name, (given, named)), with_kwargs=True
                )
                after = module.register_forward_hook(lambda _, __, output, name=name: leave(name, output))
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _called(self, name: str) -> str:
        kind = type(self.model.get_submodule(name)).__name__
        return f"{name} ({kind})" if name else kind


def _say(what: str) -> None:
    warnings.warn(f"model: {what}.", PetmWarning, stacklevel=2)


def _floats_in(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield from [values] if values.is_floating_point() else []
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _floats_in(value)


def _copy(x: Inputs) -> Inputs:
    return x.map(Tensor.clone) if isinstance(x, Fields) else x.clone()


def _equal(one: Inputs, other: Inputs) -> bool:
    return all(map(torch.equal, tensors_of(one), tensors_of(other)))


def _distance(one: Tensor, other: Tensor) -> float:
    """The greatest difference between numbers that are finite in both."""
    return float((one.double() - other.double()).nan_to_num(0, 0, 0).abs().max()) if one.numel() else 0.0


def _tolerance(answer: Tensor) -> float:
    """The rounding of another batch size, or what is small beside the differences between samples."""
    held = answer.double().nan_to_num(0, 0, 0)
    if not held.numel():
        return 0.0
    exact = answer.device.type == "cpu" and answer.dtype in (torch.float32, torch.float64)
    rounding = max(1e-4 if exact else 1e-2, 8 * torch.finfo(answer.dtype).eps)
    spread = float(held.std(0).max()) if len(held) > 1 else 0.0
    return max(rounding * float(held.abs().max()), _OF_SPREAD * spread)
