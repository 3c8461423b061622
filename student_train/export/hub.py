"""An exported folder as a repository of the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from teacher_cache.errors import UserError


def check_push(name: str) -> None:
    """Refuses, before any work, what could not be pushed (UserError)."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name} is no name of a repository: {error}") from None
    if "/" not in name:
        raise UserError(f"--push {name} names no owner; write user/{name}")
    if get_token() is None:
        raise UserError("--push needs a token of the hub that may write; set HF_TOKEN, or run `hf auth login`")


def push(name: str, folder: Path, *, output: str) -> str:
    """Makes a repository hold this folder and nothing else, in one commit, and gives its address; a new one is private.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    hub = HfApi()
    try:
        url = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Export by student-train",
            delete_patterns="*",  # graphs and cards of another model; the repository's history keeps them
        )
    except (HTTPError, OSError) as error:
        again = "export to another, empty folder" if "://" in output else f"`hf upload {name} {output} --delete '*'`"
        raise UserError(
            f"--push {name} failed, the export is whole at {output}: {' '.join(str(error).split())}; when that is"
            f" mended, {again} pushes it"
        ) from None
    return str(url)
