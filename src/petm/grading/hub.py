"""Uploading a bundle to the Hugging Face Hub."""

from pathlib import Path

from petm._internal.extras import import_extra
from petm.errors import HubError
from petm.grading.manifest import MANIFEST, read_manifest


def push_to_hub(bundle: str | Path, repository: str, *, public: bool = False) -> str:
    """Uploads a bundle to a model repository on the Hugging Face Hub, and returns its address.

    The bundle is checked against its hashes first; other files in its folder stay. Its manifest names data and weights
    as the fit was given them (``petm inspect`` shows it). The token is that of ``hf auth login``, or ``HF_TOKEN``.

    Args:
        bundle: A folder that `petm.grading.grader.Grader.save` wrote.
        repository: ``owner/name``; created if it does not exist.
        public: Whether a new repository is public. An existing one keeps its setting.

    Raises:
        BundleError: The bundle is damaged.
        ExtraError: huggingface-hub is not installed.
        HubError: The Hub cannot be reached, or refuses the upload.
    """
    held = [MANIFEST, *read_manifest(bundle).files]
    hub, utils = import_extra("hf", "huggingface_hub", "huggingface_hub.utils")
    api = hub.HfApi()
    try:
        utils.validate_repo_id(repository)
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=bundle,
            allow_patterns=held,
            commit_message="A grader, made with petm",
        )
    except Exception as error:  # the errors of its transport differ between versions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HubError(
            f"repository: expected a repository to which you may write, got {repository!r}: {reason} "
            f"Check its name, and log in with hf auth login."
        ) from error
    return str(address)
