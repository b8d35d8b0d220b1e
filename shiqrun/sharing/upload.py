"""`upload` sends a folder with a model to a repository of the Hugging Face Hub, in one commit."""

import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from shiqrun.errors import InputError, TrainingError
from shiqrun.sharing.exports import ADAPTER_CONFIG, BASE_KEY
from shiqrun.sharing.finished_run import FinishedRun
from shiqrun.util.hub import is_offline, why_unreachable

CONNECTION_ERROR: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
"""Of the HTTP library under `huggingface_hub`, which is httpx in its version 1 and httpx2 in version 2."""
DRY = "--dry-run writes the folder without it"


def expect_repo(repo: str) -> None:
    """Check that a text names a repository as ORG/NAME.

    Raises:
        InputError: it does not.
    """
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"--repo {repo}: expected ORG/NAME, of letters, digits, '-', '_' and '.'")


def expect_way_to_the_hub() -> None:
    """Check that there is a token and a connection, before anything is written.

    Raises:
        InputError: one of them is missing.
    """
    if is_offline():
        raise InputError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it; {DRY}")
    if get_token() is None:
        raise InputError(f"no token of the Hugging Face Hub; run `hf auth login` or set HF_TOKEN; {DRY}")
    if (why := why_unreachable()) is not None:
        raise InputError(f"{why}; {DRY}")


def expect_base_on_the_hub(run: FinishedRun) -> None:
    """Check that others can load the base model of a run's adapter.

    Raises:
        InputError: the base model is a directory of this machine.
    """
    file = run.directory / "adapter" / ADAPTER_CONFIG
    base = json.loads(file.read_text(encoding="utf-8"))[BASE_KEY] if file.is_file() else ""
    if Path(base).is_absolute():
        raise InputError(
            f"{file.parent}: its base model is a directory of this machine ({base}), which others do not have; "
            "use --as merged"
        )


def upload(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload the files of a folder, in a new repository where there is none; return the address of the commit.

    Args:
        folder: whose files are uploaded.
        repo: ORG/NAME.
        private: whether a new repository is private; one that is there keeps what it is.
        message: of the commit.

    Raises:
        InputError: the Hub refuses the token or the repository.
        TrainingError: the connection was lost, or the Hub failed.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except HfHubHTTPError as error:
        code, said = error.response.status_code, (error.server_message or str(error)).splitlines()[0]
        if code in (401, 403):
            raise InputError(
                f"--repo {repo}: the Hub refuses the token ({code}: {said}); it needs write access"
            ) from error
        if code < 500:
            raise InputError(f"--repo {repo}: the Hub refuses it ({code}: {said})") from error
        raise TrainingError(f"the Hub failed ({code}: {said}); push again later") from error
    except (CONNECTION_ERROR, OSError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"the upload broke off ({first}); push again, what has arrived is not sent twice"
        ) from error
