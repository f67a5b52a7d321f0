"""A language model as a classifier: the logits of the first tokens of label words, as what follows its prompt."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from petm.errors import ModelError
from petm.models.holding import in_eval_mode


class _Head(nn.Module):
    """Some rows of an output layer, at the last of ``L`` tokens: from ``(N, L, D)`` to ``(N, K)``."""

    def __init__(self, rows: nn.Linear) -> None:
        super().__init__()
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """Some models look at the dtype of their output layer."""
        return self.rows.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rows(x[:, -1])
        return out


class LabelWords(nn.Module):
    """A causal language model that answers with logits ``(N, K)`` of ``K`` label words.

    The model's own modules are used, all but its output layer: only the rows of the words' tokens are computed, at the
    last token. The model itself is not changed.

    Args:
        model: A causal language model of transformers.
        tokens: The token of each label word (`petm.models.prompt.resolve`).

    Attributes:
        config: The model's configuration, with the words as classes.

    Raises:
        ModelError: The model has no output layer of its own with these tokens, or its logits are more than that layer.
    """

    def __init__(self, model: nn.Module, tokens: Mapping[str, int]) -> None:
        super().__init__()
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        name = next((name for name, module in model.named_children() if module is head), None)
        weight = getattr(head, "weight", None)
        if name is None or not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ModelError(
                f"model: expected a causal language model with an output layer, got {type(model).__name__}. "
                f"Label words are for models that continue a text."
            )
        rows = list(tokens.values())
        if len(rows) < 2 or not all(type(row) is int and 0 <= row < len(weight) for row in rows):
            raise ModelError(
                f"label_words: expected tokens from 0 to {len(weight) - 1} of at least two words, got {rows!r:.80}. "
                f"Resolve the words with the model's own tokenizer."
            )
        some = nn.Linear(weight.shape[1], len(rows), getattr(head, "bias", None) is not None, "meta", weight.dtype)
        held = {key: value.detach()[rows].clone() for key, value in head.named_parameters()}
        some.load_state_dict(held, assign=True)
        self.model = copy.copy(model)  # the same modules but for one
        self.model._modules = {**model._modules, name: _Head(some)}
        self.config = copy.copy(cast(Any, model).config)
        self.config.id2label = dict(enumerate(tokens))
        self._accepted = frozenset(inspect.signature(type(model).forward).parameters)
        self.train(model.training)
        ids = torch.tensor([rows], device=weight.device)
        with torch.no_grad(), in_eval_mode(self):
            whole, found = model(input_ids=ids).logits[:, -1, rows], self(ids)
        if found.shape != whole.shape or not torch.allclose(found, whole, rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"model: expected logits that the output layer alone makes, got others of {type(model).__name__}. "
                f"Wrap it in a module of your own that returns the logits of the label words."
            )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Returns logits ``(N, K)`` behind the last token of int64 ``(N, L)`` that is no padding, on either side."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        width = input_ids.shape[1]
        behind = mask.flip(1).argmax(1, keepdim=True)  # padding on the right goes to the left
        places = (torch.arange(width, device=mask.device) - behind) % width
        mask = mask.gather(1, places)
        more = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
        taken = {name: value for name, value in more.items() if name in self._accepted}
        logits: Tensor = self.model(input_ids=input_ids.gather(1, places), attention_mask=mask, **taken).logits
        return logits
