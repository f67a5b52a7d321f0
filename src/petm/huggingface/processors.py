"""What prepares the inputs of a Hugging Face folder's classifier, whichever kind it is."""

from pathlib import Path

from petm.huggingface.folder import read_config
from petm.huggingface.image_processor import ImageProcessor, load_image_processor
from petm.huggingface.tokenizer import Tokenizer, load_tokenizer


def load_processor(folder: str | Path, *, trust_remote_code: bool = False) -> Tokenizer | ImageProcessor:
    """Returns what prepares the inputs of a folder's classifier: its tokenizer, or its image processor.

    Args:
        folder: With ``config.json`` and the files of a tokenizer or an image processor, as ``save_pretrained`` writes
            them.
        trust_remote_code: Run the folder's own code, if there is such.

    Raises:
        ModelError: The files are missing or cannot be used; the images have no fixed size; no token can pad; or the
            folder has code of its own that is not trusted.
    """
    folder = Path(folder)
    config, task = read_config(folder, trust_remote_code=trust_remote_code)
    load = load_image_processor if task == "ImageClassification" else load_tokenizer
    return load(folder, config, trust_remote_code=trust_remote_code)
