"""Each kind of problem has its own exit code, and says what, where, and what to do."""

from common import errors
from common.errors import NestcoderError, UsageError


def test_every_kind_has_a_code_of_its_own_that_the_docstring_names() -> None:
    kinds = NestcoderError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert sorted(codes) == list(range(2, 2 + len(kinds)))
    for kind in kinds:
        assert f"{kind.__name__}" in str(errors.__doc__)
        assert f" {kind.exit_code}   " in str(errors.__doc__)


def test_a_problem_is_at_most_three_lines() -> None:
    assert str(UsageError("What.", where="here", remedy="Do this.")) == "What.\nhere\nDo this."
    assert str(UsageError("What.")) == "What."
