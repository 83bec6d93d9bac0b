"""Each problem with the Hub has its own sentence, and an exit code that says whether the user can solve it."""

import errno
from types import SimpleNamespace

import pytest

from common.errors import DiskError, NestcoderError, UsageError
from common.hub_errors import hub_errors, page_of


def named(name: str, text: str = "") -> Exception:
    """An exception of a class of that name, as the Hub's client raises."""
    return type(name, (Exception,), {})(text)


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (named("GatedRepoError"), UsageError, "needs a licence"),
        (named("RevisionNotFoundError"), UsageError, "has no revision 'r'"),
        (named("RepositoryNotFoundError"), UsageError, "There is no model 'a/b' on the Hub"),
        (named("EmptyDatasetError"), UsageError, "has no data files"),
        (RuntimeError("Dataset scripts are no longer supported"), UsageError, "no code from the Hub is ever run"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "There is no room for 'a/b'"),
        (ConnectionError("no route\nsecond line"), DiskError, "cannot be reached: ConnectionError: no route."),
    ],
)
def test_each_problem_has_its_own_sentence(raised: Exception, kind: type[NestcoderError], words: str) -> None:
    with pytest.raises(kind) as caught, hub_errors("model", "a/b", revision="r"):
        raise raised
    assert words in str(caught.value)
    assert "second line" not in str(caught.value)


def test_the_cause_inside_another_error_is_found_and_typed_errors_are_unchanged() -> None:
    wrapped = ValueError("Could not find it")
    wrapped.__cause__ = named("GatedRepoError")
    with pytest.raises(UsageError, match="licence"), hub_errors("dataset", "a/b"):
        raise wrapped
    with pytest.raises(UsageError, match=r"^mine$"), hub_errors("dataset", "a/b"):
        raise UsageError("mine")


def test_pages() -> None:
    assert page_of("dataset", "a/b") == "https://huggingface.co/datasets/a/b"
    assert page_of("model", "a/b") == "https://huggingface.co/a/b"


def test_a_refused_token_is_found_behind_a_missing_file() -> None:
    refused = named("HfHubHTTPError")
    refused.response = SimpleNamespace(status_code=403)  # pyright: ignore[reportAttributeAccessIssue]
    refused.server_message = "Enable access."  # pyright: ignore[reportAttributeAccessIssue]
    missing = named("LocalEntryNotFoundError", "not on the disk")
    missing.__cause__ = refused
    with pytest.raises(UsageError, match="refuses access to 'a/b': Enable access"), hub_errors("model", "a/b"):
        raise missing
