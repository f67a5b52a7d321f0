"""Data sets: labelled samples from memory, MNIST files, image folders, Parquet shards, npz archives, and texts."""

from petm.data.base import (
    UNLABELLED,
    Batch,
    Data,
    FieldsData,
    Subset,
    TensorData,
    WithTargets,
    as_data,
    as_is,
    check_finite,
    fields_of,
)
from petm.data.digits import load_digits
from petm.data.image_folder import ImageFolder
from petm.data.joined import Joined
from petm.data.mnist import load_mnist
from petm.data.npz import load_npz
from petm.data.opening import open_data
from petm.data.parquet import ParquetImages
from petm.data.text import Texts, read_texts
from petm.data.tokenized import Tokenized, pad_batch

__all__ = [
    "UNLABELLED",
    "Batch",
    "Data",
    "FieldsData",
    "ImageFolder",
    "Joined",
    "ParquetImages",
    "Subset",
    "TensorData",
    "Texts",
    "Tokenized",
    "WithTargets",
    "as_data",
    "as_is",
    "check_finite",
    "fields_of",
    "load_digits",
    "load_mnist",
    "load_npz",
    "open_data",
    "pad_batch",
    "read_texts",
]
