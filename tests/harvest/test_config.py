"""The settings of the harvest: what is refused, and how."""

import pytest

from harvest.config import HarvestSettings


def test_settings_that_disagree_are_refused():
    with pytest.raises(ValueError, match="dataset stdlib is text"):
        HarvestSettings(tokens_column="ids")
    with pytest.raises(ValueError, match="at least 2 tokens"):
        HarvestSettings(context=1)
    assert HarvestSettings(train_tokens=16e6).train_tokens == 16_000_000
