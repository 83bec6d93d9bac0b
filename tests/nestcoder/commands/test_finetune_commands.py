"""The command prints the plan and names what it made; the stage itself is tested in tests/finetune."""

from pathlib import Path

import pytest

from common.errors import UsageError
from nestcoder.commands.finetune_commands import plan_finetune
from nestcoder.invocation import Invocation


def test_the_plan_of_a_layer_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    invocation = Invocation(None, [f"runs={tmp_path}"], as_json=False)
    with pytest.raises(UsageError, match="There is no trained transcoder here"):
        plan_finetune(invocation, [8], "cpu", name="main", result=None)
    assert not list(tmp_path.rglob("*"))
