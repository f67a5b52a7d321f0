"""What is read of a source: rows that are not decoded yet."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from petm._internal.storage import Located

Content = Located | bytes | str | NDArray[Any] | None
"""An image file, an encoded image, a text, an array ``(C, H, W)``; or nothing, where a cell is empty."""


@dataclass
class Rows:
    """Some inputs in their order.

    Attributes:
        inputs: The path of each.
        rows: Where in this file: a row from 0, a line from 1 of texts; None for a file that is one input.
        contents: What stands there.
        labels: A class number, a class name, or None.
        faults: Why it could not be read, where that is known already.
    """

    inputs: list[str] = field(default_factory=list)
    rows: list[int | None] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    faults: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def append(
        self, path: str, row: int | None, content: Content, label: int | str | None = None, fault: str | None = None
    ) -> None:
        """Adds one input."""
        self.inputs.append(path)
        self.rows.append(row)
        self.contents.append(content)
        self.labels.append(label)
        self.faults.append(fault)


class Source(ABC):
    """Inputs in an order that does not change.

    Attributes:
        name: The path of the file or folder.
    """

    name: str

    @abstractmethod
    def count(self) -> int:
        """Returns how many inputs there are."""

    @abstractmethod
    def identity(self) -> str:
        """Returns what changes when the inputs do: names, sizes, times; not their content."""

    @abstractmethod
    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the inputs from ``start`` to before ``stop``, up to ``size`` at a time.

        Raises:
            DataError: The file is not whole, or a column is missing or of an unsuitable type.
        """

    def part(self, start: int, stop: int) -> "Source":
        """Returns the inputs from ``start`` to before ``stop`` as a source that another process can read by itself."""
        return _Part(self, start, stop)

    def parts(self, size: int) -> Iterator["Source"]:
        """Yields all inputs in parts of up to ``size``."""
        for start in range(0, self.count(), size):
            yield self.part(start, start + size)


class _Part(Source):
    """Some inputs of a source that follow each other."""

    def __init__(self, whole: Source, start: int, stop: int) -> None:
        self.name, self.whole, self.start, self.stop = whole.name, whole, start, min(stop, whole.count())

    def count(self) -> int:
        return self.stop - self.start

    def identity(self) -> str:
        return f"{self.whole.identity()} {self.start} {self.stop}"

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        yield from self.whole.rows(self.start + start, min(self.start + stop, self.stop), size)


def chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[Rows]:
    """Yields single rows, as `Rows.append` takes them, up to ``size`` at a time."""
    held = Rows()
    for row in rows:
        held.append(*row)
        if len(held) == size:
            yield held
            held = Rows()
    if len(held):
        yield held
