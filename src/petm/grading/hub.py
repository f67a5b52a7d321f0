"""A bundle on the Hugging Face Hub: only when asked, and nothing but the bundle."""

from pathlib import Path

from petm._internal.extras import import_extra
from petm.errors import HubError
from petm.grading.manifest import MANIFEST, read_manifest


def push_to_hub(bundle: str | Path, repository: str, *, public: bool = False) -> str:
    """Returns the address of a model repository on the Hugging Face Hub, to which a bundle has been uploaded.

    The bundle is checked against its hashes first, and no other file in its folder is uploaded. Its manifest says where
    data and weights lay when it was fitted, as they were named then; ``petm inspect`` shows it. The token is the one
    that ``hf auth login`` has stored, or ``HF_TOKEN``.

    Args:
        bundle: As `petm.grading.grader.Grader.save` writes it.
        repository: ``owner/name``; made where it is not there yet.
        public: Whether everybody may see a repository that is made. One that is there keeps its setting.

    Raises:
        BundleError: The bundle is damaged.
        ExtraError: huggingface-hub is not installed.
        HubError: The Hub cannot be reached, or does not take it.
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
            commit_message="A second opinion, made with petm",
        )
    except Exception as error:  # its transport has errors of its own, others with each version
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HubError(
            f"repository: expected a repository to which you may write, got {repository!r}: {reason} "
            f"Check its name, and log in with hf auth login."
        ) from error
    return str(address)
