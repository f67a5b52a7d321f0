"""What can be said of a model's reference before a library is imported to read it."""

from pathlib import Path

from petm.errors import ModelError
from petm.models.hf_folder import check_folder, folder_of


def split_reference(reference: str) -> tuple[str, str]:
    """Returns module or file, and factory, of a reference; raises ModelError where it has not both."""
    place, _, name = reference.rpartition(":")
    if not (place and name):
        raise ModelError(
            f"model: expected 'module:factory', 'file.py:factory' or 'hf:DIR', got {reference!r}. "
            f"Name the function or class that makes the network behind a colon (--model)."
        )
    return place, name


def check_reference(reference: str, *, base: str | Path | None = None, device_map: object = None) -> None:
    """Checks what needs neither PyTorch nor transformers; the arguments are those of `petm.models.loading.load_model`.

    Raises:
        ModelError: There is no such folder or file, the reference has no factory, or an argument is for a folder alone.
    """
    if (folder := folder_of(reference)) is not None:
        check_folder(folder)
        return
    if base is not None:
        raise ModelError(f"base: expected none beside {reference}, which is no folder of an adapter, got {base}.")
    if device_map is not None:
        raise ModelError(f"device_map: expected none beside {reference}, which is no folder hf:DIR, got {device_map}.")
    place, _ = split_reference(reference)
    if place.endswith(".py") and not Path(place).is_file():
        raise ModelError(f"model: expected a file with a factory, got {place}, which does not exist. Check the path.")
