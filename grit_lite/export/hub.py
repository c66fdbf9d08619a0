"""Publishing a folder on the Hugging Face hub, and what is asked of it beforehand."""

from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from grit_lite.errors import ModelError, UsageError


def check_access(repository: str) -> None:
    """Refuse, before any work, a name that cannot be, a missing token, or one that the hub does not know.

    Raises:
        UsageError: the name.
        ModelError: the token, or a hub that cannot be reached.
    """
    _check_name(repository)
    if get_token() is None:
        raise ModelError(
            f"Publishing {repository} needs a token of the hub, and there is none. Make one with the right to write "
            "(https://huggingface.co/settings/tokens), then log in with `hf auth login`, or set HF_TOKEN."
        )
    try:
        HfApi().whoami()
    except (OSError, httpx.HTTPError) as error:
        raise ModelError(f"Publishing {repository} is not possible: {_said(error)}") from error


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError("it names no owner")
    except HFValidationError as error:
        raise UsageError(f"--push {repository}: write OWNER/NAME, for example --push ada/boxes-3b. {error}") from error


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Publish the folder as one commit, into a repository that is made where there is none; returns its address.

    Raises:
        ModelError: the hub refused, or could not be reached; the folder stays as it is.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a grit-lite run")
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise ModelError(
            f"The export is complete in {folder}, but publishing it as {repository} failed: {_said(error)}\n"
            f"Once that is remedied: hf upload {repository} {folder}"
        ) from error
    return str(address)


def _said(error: Exception) -> str:
    """What the hub said, in a line."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        code = error.response.status_code
        hint = {
            401: "The token is not known to the hub, or has expired: `hf auth login`.",
            403: "The token may not write there: use one with the right to write, for an owner you belong to.",
        }.get(code, "")
        return f"the hub answered {code}: {error.server_message or error.response.reason_phrase}. {hint}".strip()
    return " ".join(str(error).split())
