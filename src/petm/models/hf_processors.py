"""What prepares the inputs of a model, as a Hugging Face folder has it, whichever kind it is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from petm.errors import ModelError
from petm.models.hf_folder import Task, read_config
from petm.models.hf_image_processor import ImageProcessor, load_image_processor
from petm.models.hf_tokenizer import Tokenizer, has_vocabulary, load_tokenizer


def load_processor(folder: str | Path, *, trust_remote_code: bool = False) -> Tokenizer | ImageProcessor:
    """Returns what prepares a model's inputs: the tokenizer of a folder, or its image processor.

    The folder's model says which, where there is a classifier; otherwise the tokenizer comes first.

    Args:
        folder: With the files of a tokenizer or an image processor, as ``save_pretrained`` writes them; best beside the
            ``config.json`` of their model, which says how many tokens it takes, and what pads.
        trust_remote_code: Run the folder's own code, if there is such.

    Raises:
        ModelError: The files are missing or cannot be used; the images have no fixed size; no token can pad; or the
            folder has code of its own that is not trusted.
    """
    folder = Path(folder)
    config: Any = SimpleNamespace(pad_token_id=None, eos_token_id=None, model_type="")
    task: Task | None = None
    if (folder / "config.json").is_file():
        config, task = read_config(folder, trust_remote_code=trust_remote_code)
    elif not folder.is_dir():
        raise ModelError(
            f"processor: expected a folder with a tokenizer or an image processor, got {folder}, which is none."
        )
    if task is None:
        task = "SequenceClassification" if has_vocabulary(folder) else "ImageClassification"
    load = load_image_processor if task == "ImageClassification" else load_tokenizer
    return load(folder, config, trust_remote_code=trust_remote_code)
