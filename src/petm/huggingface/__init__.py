"""Classifiers in a local Hugging Face folder: the network, the names of its classes, and what prepares its inputs.

Nothing is fetched: every file is read from the folder, and weights are safetensors.
"""

from petm.huggingface.classifier import class_count, class_names, load_classifier
from petm.huggingface.folder import PREFIX, folder_of
from petm.huggingface.image_processor import ImageProcessor
from petm.huggingface.plain_form import PlainForm, plain_form
from petm.huggingface.processors import load_processor
from petm.huggingface.tokenizer import Tokenizer

__all__ = [
    "PREFIX",
    "ImageProcessor",
    "PlainForm",
    "Tokenizer",
    "class_count",
    "class_names",
    "folder_of",
    "load_classifier",
    "load_processor",
    "plain_form",
]
