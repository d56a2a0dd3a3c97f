"""An exported folder goes to the Hugging Face hub; what the network does never costs the folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning_sft.errors import UserError, first_line


def check_repository(name: str) -> None:
    """Raise before minutes of loading where nothing could be pushed.

    Args:
        name: of a repository, such as ``me/my-model``.

    Raises:
        UserError: it is no name of a repository, or nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, and not in __all__

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--push_to_hub is {name!r}, which is no name of a repository: {first_line(error)} Allowed: a name such as "
            "me/my-model."
        ) from error
    if get_token() is None:
        raise UserError(
            f"--push_to_hub is {name!r}, but nobody is logged in to the hub here. Run `hf auth login`, or set HF_TOKEN "
            "to a token that may write."
        )


def push_to_hub(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder as one commit, into a repository that is made if need be; return its address.

    Args:
        folder: that was exported.
        name: of the repository.
        private: whether a new repository is seen by its owner alone.

    Raises:
        UserError: the hub was not reached or refused; the folder stays, and the message has the command to go on.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from lightning-sft export")
    except Exception as error:  # of the network, of the hub, of whatever library carries them: the folder is whole
        hidden = " --private" if private else ""
        raise UserError(
            f"The export is whole in {str(folder)!r}, but could not be pushed to {name}: {type(error).__name__}: "
            f"{first_line(error)} Go on without exporting again: "
            f"hf upload {name} {shlex.quote(str(folder))} .{hidden}"
        ) from error
    return address
