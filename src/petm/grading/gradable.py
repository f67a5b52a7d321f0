"""What can be graded, by one rule for every grader: arrays, files, images, texts, data sets and loaders."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.progress import track
from petm.data.reader import Tokenizer, of_pairs
from petm.data.tables import TABLE_SUFFIXES
from petm.errors import ArgumentError, DataError, ModelError
from petm.grading.grades import Grades, as_inputs, refuse_pixels
from petm.models.hf_processors import ImageProcessor, load_processor

if TYPE_CHECKING:
    from petm.data.base import Data
    from petm.data.fields import Inputs
    from petm.data.samples import Samples
    from petm.grading.provenance import InputOrigin

prepares = lru_cache(maxsize=1)(load_processor)
"""Returns the tokenizer or image processor in a folder, read once for all paths of a command."""
_TAKEN = (
    "a batch or one sample as an array or a tensor, tensors by name, a path, an image of Pillow, a text for a text "
    "model, a list of these, a data set or a DataLoader"
)


def processor_of(inputs: "InputOrigin", trust_remote_code: bool) -> Tokenizer | ImageProcessor | None:
    """Returns the tokenizer or image processor of inputs, or None where they have none.

    Raises:
        ModelError: It cannot be read, or differs from the one of the fit.
    """
    how: Any = {"base": inputs.base, "trust_remote_code": trust_remote_code, "prompt": inputs.prompt}
    if inputs.text_column is None and inputs.length is not None:
        how["length"] = inputs.length  # of sounds
    processor = prepares(inputs.processor, **how) if inputs.processor else None
    if isinstance(processor, Tokenizer) and inputs.pair_column is not None:
        processor = of_pairs(processor, inputs.pair_column)
    if processor is not None and processor.fingerprint != inputs.fingerprint:
        raise ModelError(
            f"processor: expected the one of the fit, got another one in {inputs.processor}. "
            f"Name the folder of the former (--processor), or fit anew."
        )
    return processor


class Gradable:
    """Whatever a user passes to be graded, as a data set or as batches.

    Args:
        inputs: How the inputs of the fit were read.
        processor: Their tokenizer or image processor, where it is at hand; absent, it is read where ``inputs`` says.
    """

    def __init__(self, inputs: "InputOrigin", processor: Tokenizer | ImageProcessor | None = None) -> None:
        self.inputs, self._processor = inputs, processor

    @property
    def processor(self) -> Tokenizer | ImageProcessor | None:
        """The tokenizer or image processor; raises ModelError where it is gone, or is another one."""
        return self._processor or processor_of(self.inputs, trust_remote_code=False)

    def opened(self, x: Any, batch_size: int) -> "NDArray[Any] | Data | Batches":
        """Returns the samples: an array or a data set as they are; others in batches, in their order.

        Raises:
            ArgumentError: They are nothing that can be graded.
            DataError: A file cannot be read.
        """
        if isinstance(x, np.ndarray) and x.dtype.kind not in "OSU":
            return np.asarray(self._as_batch(x))
        if (torch := sys.modules.get("torch")) is not None:  # without it, nothing is of its types
            from petm.data.base import Data

            if isinstance(x, torch.utils.data.DataLoader):
                if isinstance(x.sampler, torch.utils.data.RandomSampler):
                    got = "a DataLoader that shuffles. Pass shuffle=False, or its data set"
                    raise ArgumentError(f"x: expected samples in a fixed order, got {got}.")
                return Batches(self, x, None)
            if isinstance(x, Mapping | torch.Tensor):
                return as_inputs(self._as_batch(x))
            if isinstance(x, Data) or hasattr(x, "keys") or _is_pair(x):
                return as_inputs(x)
        if isinstance(x, str | Path) and self._is_collection(x):
            return self._at(x)
        if isinstance(x, str | Path) or hasattr(x, "getexif"):
            return Batches(self, [x], batch_size)
        x = x.tolist() if hasattr(x, "tolist") else x  # an array or a pandas column of texts or paths
        if hasattr(x, "__iter__") or hasattr(x, "__getitem__"):
            return Batches(self, x, batch_size)
        raise ArgumentError(f"x: expected {_TAKEN}, got {type(x).__name__}.")

    def _as_batch(self, x: Any) -> Any:
        """The same, one sample as a batch of one."""
        if isinstance(x, Mapping):
            tokens = x.get("input_ids")
            return {name: each[None] for name, each in x.items()} if getattr(tokens, "ndim", 0) == 1 else x
        profile = self.inputs.profile
        return x[None] if profile is not None and hasattr(x, "ndim") and tuple(x.shape) == profile.shape else x

    def _is_collection(self, path: str | Path) -> bool:
        """Whether a path is that of a folder, a table or an archive; a text for a text model is none."""
        from petm.data.images import is_sample

        if isinstance(path, str) and (isinstance(self.processor, Tokenizer) or self.inputs.profile is None):
            return Path(path).suffix in (*TABLE_SUFFIXES, ".npz") and Path(path).is_file()
        return not (is_sample(str(path)) and Path(path).is_file())

    def _at(self, path: str | Path) -> "Data":
        from petm.data.opening import open_data
        from petm.data.texts import Tokenized, read_texts

        processor = self.processor
        if isinstance(processor, Tokenizer):
            columns = self.inputs.columns or "text"
            return Tokenized(
                read_texts(path, text_column=columns, label_column=None), processor, length=self.inputs.length
            )
        return open_data(path, **self.inputs.settings(processor))

    def samples(self) -> "Samples":
        """Returns what makes batches of single samples."""
        from petm.data.samples import Samples

        inputs, processor = self.inputs, self.processor
        if isinstance(processor, Tokenizer):
            return Samples(processor, columns=inputs.columns, length=inputs.length)
        form: Any = {} if processor or not inputs.size else inputs.settings()
        return Samples(processor, **form)


class Batches:
    """Samples that are graded batch by batch: those of a sequence or an iterable, or the batches of a DataLoader.

    Args:
        gradable: Makes inputs of samples.
        content: The samples, or the batches.
        size: Samples in one batch; None where ``content`` has batches.
    """

    def __init__(self, gradable: Gradable, content: Any, size: int | None) -> None:
        self._gradable, self._content, self._size = gradable, content, size

    def __iter__(self) -> "Iterator[Inputs]":
        from petm.data.base import check_finite
        from petm.data.samples import parts_of

        samples, done = self._gradable.samples(), 0
        for given in self._content if self._size is None else self._chunks(self._size):
            batch = samples.of_loader(given) if self._size is None else samples.batch([parts_of(x)[0] for x in given])
            refuse_pixels("inputs", str(getattr(batch, "dtype", "")).endswith("uint8"), self._gradable.inputs)
            check_finite(batch, f"inputs, samples from {done}")
            done += len(batch)
            yield batch

    def _chunks(self, size: int) -> Iterator[list[Any]]:
        rows = range(len(self._content)) if hasattr(self._content, "__len__") else ()
        # Not every sequence ends an iteration by itself, so what has a length is indexed.
        each = iter(self._content[row] for row in rows) if hasattr(rows, "stop") else iter(self._content)
        with track("grade", len(rows)) as progress:
            while chunk := list(islice(each, size)):
                yield chunk
                progress.advance(len(chunk))


def graded(batches: Batches, grade: Callable[..., Grades], allowance: Any) -> Grades:
    """Returns the grades of all batches as one; raises DataError where there is none."""
    parts = [grade(batch, allowance=allowance) for batch in batches]
    if not parts:
        raise DataError("inputs: expected at least one sample, got none.")
    return Grades.joined(parts)


def _is_pair(x: Any) -> bool:
    """Whether these are inputs and labels."""
    return isinstance(x, tuple) and len(x) == 2 and (hasattr(x[0], "shape") or isinstance(x[0], Mapping))
