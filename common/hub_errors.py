"""The errors of the Hugging Face Hub, each as one sentence with a remedy.

The Hub's client wraps one error in another (a refused token becomes "not found here and cannot be reached"), so all
causes in the chain are examined.
"""

import errno
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from common.errors import DiskError, NestcoderError, UsageError

_SITE = "https://huggingface.co/"
_LOGIN = "run `hf auth login` or set HF_TOKEN"


def page_of(kind: str, name: str) -> str:
    """The web page of a ``model`` or ``dataset``."""
    return f"{_SITE}datasets/{name}" if kind == "dataset" else f"{_SITE}{name}"


@contextmanager
def hub_errors(kind: str, name: str, *, remedy: str = "", revision: str | None = None) -> Generator[None]:
    """Turn the errors of the Hub's clients about a ``model`` or ``dataset`` into errors of ours.

    ``remedy`` says what to do when the Hub cannot be reached. Raises UsageError for a name, a revision or a permission,
    which the user can correct; DiskError for the network and a full disk.
    """
    try:
        yield
    except NestcoderError:
        raise
    except Exception as error:
        raise hub_problem(error, kind, name, remedy=remedy, revision=revision) from None


def hub_problem(
    error: BaseException, kind: str, name: str, *, remedy: str = "", revision: str | None = None
) -> NestcoderError:
    """Our error for an exception of the Hub's clients."""
    page = page_of(kind, name)
    chain = list(_chain(error))
    names = {base.__name__ for cause in chain for base in type(cause).__mro__}
    full = next((cause for cause in chain if getattr(cause, "errno", None) in {errno.ENOSPC, errno.EDQUOT}), None)
    if full is not None:
        return _full_disk(full, name)
    refusal = _refusal(chain, names, kind, name, revision)
    if refusal:
        what, how = refusal
        return UsageError(what, where=page, remedy=how)
    if kind == "dataset" and "ValueError" in names and not names & {"HfHubHTTPError", "JSONDecodeError"}:
        return UsageError(f"The dataset '{name}' cannot be opened: {_first_line(error)}.", where=page)
    return DiskError(
        f"The {kind} '{name}' is not on this machine, and the Hub cannot be reached: {_first_line(chain[-1])}.",
        where=page,
        remedy=remedy or "Check the network and run again.",
    )


def _refusal(
    chain: list[BaseException], names: set[str], kind: str, name: str, revision: str | None
) -> tuple[str, str] | None:
    """The message and remedy if the Hub or its client refused for a reason that another try does not change."""
    refused = _refused_access(chain, names, kind, name)
    if refused:
        return refused
    if "RevisionNotFoundError" in names:
        return f"'{name}' has no revision '{revision}'.", "Give a branch, a tag or a commit from its page."
    status = next((code for cause in chain if (code := _status(cause))), None)
    # The Hub answers 401 also for names that do not exist, so that private names stay secret.
    if names & {"RepositoryNotFoundError", "HFValidationError", "DatasetNotFoundError"} or status == 401:
        return (
            f"There is no {kind} '{name}' on the Hub (or it is private and HF_TOKEN is not set), and no such folder.",
            f"Check the name; for a private {kind} {_LOGIN}.",
        )
    if any("script" in str(cause).lower() and isinstance(cause, RuntimeError) for cause in chain):
        return (
            f"The dataset '{name}' needs a script of its own, and no code from the Hub is ever run.",
            "Use a copy in Parquet or JSON lines: many datasets have one in the branch refs/convert/parquet.",
        )
    if names & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return f"The {kind} '{name}' has no data files of a kind that is read.", "Look at its files on its page."
    if "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names:
        return f"'{name}' lacks a file: {_first_line(chain[0])}.", "Look at its files on its page."
    return None


def _refused_access(chain: list[BaseException], names: set[str], kind: str, name: str) -> tuple[str, str] | None:
    if "GatedRepoError" in names:
        return f"'{name}' needs a licence: accept it at {page_of(kind, name)}, then {_LOGIN}.", ""
    refusal = next((cause for cause in chain if _status(cause) == 403), None)  # forbidden
    if refusal is None:
        return None
    return (
        f"The Hub refuses access to '{name}'{_server_message(refusal)}.",
        "Give the token this permission, or use another token: HF_TOKEN.",
    )


def _full_disk(error: BaseException, name: str) -> DiskError:
    from huggingface_hub import constants

    return DiskError(
        f"There is no room for '{name}': {getattr(error, 'strerror', None) or error}.",
        where=constants.HF_HUB_CACHE,
        remedy="Free some space there, or set HF_HOME to a folder on a larger disk.",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _server_message(error: BaseException) -> str:
    message = getattr(error, "server_message", None)
    return f": {str(message).strip().rstrip('.')}" if message else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
