"""Data sets: labelled samples from memory, MNIST files, image folders, Parquet shards and npz archives."""

from petm.data.base import (
    UNLABELLED,
    Batch,
    Data,
    Subset,
    TensorData,
    WithTargets,
    as_data,
    as_is,
    check_finite,
)
from petm.data.digits import load_digits
from petm.data.image_folder import ImageFolder
from petm.data.joined import Joined
from petm.data.mnist import load_mnist
from petm.data.npz import load_npz
from petm.data.opening import open_data
from petm.data.parquet import ParquetImages

__all__ = [
    "UNLABELLED",
    "Batch",
    "Data",
    "ImageFolder",
    "Joined",
    "ParquetImages",
    "Subset",
    "TensorData",
    "WithTargets",
    "as_data",
    "as_is",
    "check_finite",
    "load_digits",
    "load_mnist",
    "load_npz",
    "open_data",
]
