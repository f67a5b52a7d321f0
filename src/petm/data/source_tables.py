"""Rows of Parquet files: encoded images or texts."""

from collections.abc import Iterator
from typing import Any

from petm._internal.storage import Located, for_arrow, identity_of
from petm.data.parquet import class_names
from petm.data.source import (
    Content,
    Rows,
    Source,
    chunks,
)
from petm.errors import DataError

_BUFFER = 1 << 20
"""Bytes of a file that are read at a time."""


class ParquetFile(Source):
    """The rows of one Parquet file, numbered from 0.

    Args:
        path: The file.
        column: Of encoded images (binary, or a struct with a field ``bytes``) or of texts.
        label_column: Of labels, where there is one: integers or names.
        texts: Whether the column holds texts.

    Raises:
        DataError: The file is not whole, or a column is missing or of an unsuitable type.
    """

    def __init__(self, path: Located, column: str, label_column: str | None, *, texts: bool) -> None:
        import pyarrow as pa

        self.name, self.path, self.column = str(path), path, column
        with self._opened() as file:
            schema, self._rows = file.schema_arrow, file.metadata.num_rows
            self._groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        if column not in schema.names:
            raise DataError(
                f"{path}: expected a column '{column}', got the columns {', '.join(schema.names)}. "
                f"{'Name it with --text-column.' if texts else 'Rename the column of images.'}"
            )
        kind = schema.field(column).type
        self._struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        inner = kind.field("bytes").type if self._struct else kind
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        suits = (
            (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
            if texts
            else (pa.types.is_binary, pa.types.is_large_binary)
        )
        if not any(suit(inner) for suit in suits):
            wanted = "texts" if texts else "encoded images (binary, or a struct with a field bytes)"
            raise DataError(f"{path}: expected {wanted} in column '{column}', got {kind}. Name another column.")
        self.label_column = label_column if label_column in schema.names else None
        self._names = class_names(schema.metadata, self.label_column) if self.label_column else ()

    def count(self) -> int:
        """Returns how many rows there are."""
        return int(self._rows)

    def identity(self) -> str:
        """Returns path, size, time of change and column."""
        return f"{identity_of(self.path)} {self.column}"

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the rows from ``start`` to before ``stop``, up to ``size`` at a time.

        Raises:
            DataError: The file is not whole.
        """
        yield from chunks(self._each(start, min(stop, self.count()), size), size)

    def _each(self, start: int, stop: int, size: int) -> Iterator[tuple[str, int, Content, int | str | None]]:
        import pyarrow as pa

        if start >= stop:
            return
        groups: list[int] = []
        first, before = 0, 0
        for group, count in enumerate(self._groups):
            if before + count > start and before < stop:
                first = first if groups else before
                groups.append(group)
            before += count
        columns = [self.column, *([self.label_column] if self.label_column else [])]
        path, row = str(self.path), first
        try:
            with self._opened() as file:
                for batch in file.iter_batches(size, row_groups=groups, columns=columns):
                    if row + len(batch) > start:
                        contents = batch.column(0).to_pylist()
                        labels: list[Any] = batch.column(1).to_pylist() if self.label_column else [None] * len(batch)
                        for offset in range(max(0, start - row), min(len(batch), stop - row)):
                            yield path, row + offset, self._content(contents[offset]), self._label(labels[offset])
                    row += len(batch)
                    if row >= stop:
                        return
        except (OSError, pa.ArrowException) as error:
            raise _broken(self.path, error) from error

    def _content(self, value: Any) -> Content:
        content: Content = value["bytes"] if self._struct and value is not None else value
        return content

    def _label(self, value: Any) -> int | str | None:
        if isinstance(value, int) and 0 <= value < len(self._names):
            return self._names[value]
        return value if isinstance(value, int | str) else None

    def _opened(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Buffered, a column is read page by page; otherwise a group of rows is, which may be the whole file.
            source, filesystem = for_arrow(self.path)
            return pq.ParquetFile(source, filesystem=filesystem, buffer_size=_BUFFER, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise _broken(self.path, error) from error


def _broken(path: Located, error: Exception) -> DataError:
    reason = str(error).splitlines()[0].rstrip(".")
    return DataError(f"{path}: expected a whole Parquet file, got: {reason}. Fetch it again.")
