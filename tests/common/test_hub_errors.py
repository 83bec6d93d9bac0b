"""Every trouble with the Hub is one sentence, found through the whole chain of causes."""

import errno
from types import SimpleNamespace

import pytest

from common.errors import DiskError, UsageError
from common.hub_errors import hub_errors, hub_problem, page_of


def named(name, text="", *, bases=(Exception,), **fields):
    """An exception of a class of this name, as the clients raise them."""
    error = type(name, bases, {})(text)
    for key, value in fields.items():
        setattr(error, key, value)
    return error


def caused(error, cause):
    error.__cause__ = cause
    return error


REFUSALS = [
    (named("GatedRepoError"), "asks for a licence: accept it at https://huggingface.co/datasets/o/n"),
    (named("RevisionNotFoundError"), "has no revision 'v9'"),
    (named("RepositoryNotFoundError"), "No dataset 'o/n' on the Hub"),
    (named("DatasetNotFoundError"), "No dataset 'o/n' on the Hub"),
    (RuntimeError("Dataset scripts are no longer supported, but found n.py"), "made by a script of its own"),
    (named("EmptyDatasetError"), "holds no data files"),
    (ValueError("Bad split: nope"), "cannot be opened: ValueError: Bad split: nope"),
    (
        caused(
            named("LocalEntryNotFoundError", "not on the disk"),
            named("HfHubHTTPError", response=SimpleNamespace(status_code=403), server_message="Enable access."),
        ),
        "refuses access to 'o/n': Enable access",
    ),
]


@pytest.mark.parametrize(("error", "said"), REFUSALS, ids=[type(error).__name__ for error, _ in REFUSALS])
def test_what_the_user_can_mend_is_a_usage_error(error, said):
    problem = hub_problem(error, "dataset", "o/n", revision="v9")
    assert isinstance(problem, UsageError)
    assert said in problem.what
    assert problem.where == page_of("dataset", "o/n")


def test_the_network_is_a_disk_error_with_what_works_without_it():
    error = caused(named("LocalEntryNotFoundError", "not found"), ConnectionError("refused"))
    problem = hub_problem(error, "model", "o/n", remedy="Give a folder.")
    assert isinstance(problem, DiskError)
    assert "cannot be reached: ConnectionError: refused" in problem.what
    assert problem.remedy == "Give a folder."


def test_a_full_disk_is_found_behind_other_errors():
    problem = hub_problem(caused(RuntimeError("failed"), OSError(errno.ENOSPC, "No space left")), "model", "o/n")
    assert isinstance(problem, DiskError)
    assert "no room to keep 'o/n'" in problem.what
    assert "HF_HOME" in problem.remedy


def test_our_own_errors_pass_through():
    own = UsageError("own")
    with pytest.raises(UsageError) as raised, hub_errors("model", "o/n"):
        raise own
    assert raised.value is own
