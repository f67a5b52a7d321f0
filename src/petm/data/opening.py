"""Opening data by path, whatever of the known kinds it is."""

import glob
import re
from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Unpack

import torch

from petm.data.arrays import ArrayArchive
from petm.data.base import Data, TensorData
from petm.data.image_data import ImageData
from petm.data.images import FormSettings, Found, class_folders, images_below, is_sample
from petm.data.labels import LabelColumn, class_of_folder, in_order, match_classes
from petm.data.sources import TableRows, listed, shards_of_images
from petm.data.tables import TABLE_SUFFIXES, find_shards
from petm.errors import DataError

UNDERSTOOD = (
    "a folder with one sub-folder of images or sounds for each class, a folder of them, one of them, "
    "*.parquet (a file, a folder of shards or a glob) or *.npz"
)
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "calibration", "test", "testing"})
"""Names of parts of a data set, which are never taken for classes."""


def open_data(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    skip_bad: bool = False,
    **settings: Unpack[FormSettings],
) -> Data:
    """Returns the samples at ``path``: an image folder, an image, Parquet shards or an npz archive.

    In a folder, each sub-folder is a class, an empty one as well, in the order of their numbers where all names are
    numbers, else as text; a folder that only holds images itself, or a single image file, is unlabelled. In Parquet
    files, images are in the column ``image`` (binary, or a struct with a field ``bytes``) and labels in ``label`` if it
    exists, with class names from Hugging Face metadata, if any.

    Args:
        path: A file, a folder, or a glob of Parquet files.
        classes: The expected class names in order, such as a model's; labels are matched by name when the data have
            names, and by number when they have none.
        skip_bad: Leave out what cannot be read; reasons by name are in the result's ``skipped``.
        **settings: How images are prepared, as arrays in an npz archive must be already: ``size`` (height and width to
            resize to), ``channels`` (1 or 3), ``resize`` (``squeeze`` or ``crop`` for other ratios of the sides),
            ``mean`` and ``std`` (by channel, of pixels from 0 to 1); or ``processor``, in place of all these.

    Raises:
        ArgumentError: A setting breaks its rule.
        DataError: There is nothing at ``path``, it is of no known kind, holds no samples, or cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    form: Any = settings | {"classes": classes, "skip_bad": skip_bad}
    if suffix == ".parquet" or (path.is_dir() and shards_of_images(path)):
        return _open_tables(path, form)
    if path.is_dir() or (path.is_file() and is_sample(path.name)):
        return _open_folder(path, form)
    if path.is_file() and suffix == ".npz":
        processor = settings.get("processor")
        wanted = processor.shape if processor else (settings.get("channels"), *(settings.get("size") or (None, None)))
        prepared = any(settings.get(name) is not None for name in ("processor", "mean", "std"))
        return _load_npz(path, classes, wanted, prepared=prepared)
    if suffix in TABLE_SUFFIXES and path.exists():
        raise DataError(
            f"{path}: expected {UNDERSTOOD}, got texts. Name a text classifier (--model hf:DIR), whose tokenizer reads "
            f"them; or read them with petm.data.texts.read_texts and petm.data.texts.Tokenized."
        )
    got = f"a file of the kind '{suffix or path.name}'" if path.exists() else "a path that does not exist"
    raise DataError(f"{path}: expected {UNDERSTOOD}, got {got}. Check the path.")


def _load_npz(
    path: Path, classes: Sequence[str] | None, wanted: tuple[int | None, ...], *, prepared: bool
) -> TensorData:
    """The samples of a NumPy archive, in memory; images must have the wanted shape, and be floats if prepared."""
    archive = ArrayArchive(path)
    whole = next(archive.images(0, len(archive), max(1, len(archive))), None)
    if whole is None:
        raise DataError(f"{path}: expected at least one image, got none. Name other data.")
    images = torch.from_numpy(whole[1])
    data = TensorData(images, source=str(path))
    if archive.labels is None:
        numbers, data.classes = match_classes(data.labels.numpy(), (), classes, str(path))
    else:
        numbers, data.classes = LabelColumn.of(archive.labels, str(path)).numbers((), classes, str(path))
    data.labels = torch.from_numpy(numbers)
    if prepared and images.dtype == torch.uint8:
        raise DataError(
            f"{path}: expected floats as they are prepared for the model, got bytes. "
            f"Save what its processor makes, or the pixels less mean by std, or name image files."
        )
    shape = tuple(images.shape[1:])
    if any(wanted) and shape != tuple(number or given for number, given in zip_longest(wanted, shape)):
        rule = "×".join(str(number or "?") for number in wanted)
        raise DataError(
            f"{path}: expected images of {rule} (channels × height × width), got {'×'.join(map(str, shape))}. "
            f"Arrays are not resized: save them in that shape."
        )
    return data


def find_files(path: str | Path, suffixes: Collection[str], what: str) -> list[Path]:
    """Returns the file at a path, the Parquet shards of a folder, or the files that match a glob, in order.

    Raises:
        DataError: There is none, one has another suffix or they have several, or their names (such as
            ``train-00000-of-00002.parquet``) are those of several parts of a data set.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))
    if path.is_dir():
        files = [Path(str(shard)) for shard in find_shards(path)]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1 or kinds[0] not in suffixes:
        nothing = "a folder without Parquet files" if path.is_dir() else "a path that does not exist"
        got = f"a file of the kind {' and '.join(map(repr, kinds))}" if kinds else nothing
        known = ", ".join(f"*{suffix}" for suffix in suffixes)
        raise DataError(f"{path}: expected {what} ({known}), got {got}. Check the path.")
    parts = sorted({re.split("[-_.]", file.name.lower())[0] for file in files} & SPLIT_NAMES)
    if len(parts) > 1:
        raise DataError(
            f"{path}: expected the files of one part of a data set, got {', '.join(parts)}. "
            f"Name one of them, such as {path / (parts[0] + '*.parquet') if path.is_dir() else files[0]}."
        )
    return files


def same_class_names(sources: Sequence[TableRows]) -> tuple[str, ...]:
    """Returns the class names that all files of a data set have, and raises DataError where they differ."""
    for source in sources:
        if source.class_names != sources[0].class_names:
            raise DataError(
                f"{source.name}: expected the same class names as in {Path(sources[0].name).name}, got others. "
                f"Open files of one data set."
            )
    return sources[0].class_names


def _open_tables(path: Path, form: Any) -> ImageData:
    files = find_files(path, (".parquet",), "tables of images")
    sources = [TableRows(file, "image", "label", texts=False) for file in files]
    return ImageData(sources, str(path), names=same_class_names(sources), **form)


def _open_folder(path: Path, form: Any) -> ImageData:
    if path.is_file():
        return ImageData([listed([Found(str(path))])], str(path), root=path.parent, **form)
    found = tuple(images_below(path))
    flat = next((each.path for each in found if each.label is None), None)
    names = tuple(dict.fromkeys(each.label for each in found if each.label is not None))
    if flat is not None and names:
        raise DataError(
            f"{path}: expected images or class folders, got both ({Path(str(flat)).name} beside the folder "
            f"{names[0]}). Move the images into class folders, or the folders away."
        )
    known = set(form["classes"] or ())
    if names and SPLIT_NAMES.issuperset(name.lower() for name in names) and not known.issuperset(names):
        raise DataError(
            f"{path}: expected one folder for each class, got parts of a data set: {', '.join(names)}. "
            f"Name one of them, such as {path / names[0]}."
        )
    classes = in_order(map(class_of_folder, class_folders(path))) if names else ()
    return ImageData([listed(found)], str(path), root=path, names=classes, **form)
