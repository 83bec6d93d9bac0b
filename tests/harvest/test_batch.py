"""One batch through the model: in halves if memory is short."""

import numpy as np
import pytest
import torch

from common.errors import CapacityError
from common.progress import Silent
from harvest.batch import BatchForward
from harvest.config import HarvestSettings
from harvest.model.language_model import load_model
from harvest.text.tokens import ContextBatch
from tests.helpers.progress import Notes

HARVEST = HarvestSettings(context=32, train_tokens=700, held_out_tokens=200, batch_contexts=4)


def test_a_batch_that_does_not_fit_is_computed_in_halves(model_folders):
    model = load_model(str(model_folders["gpt2"]), device="cpu", last_layer=1)
    settings = HARVEST
    notes = Notes()

    def small(limit):
        def refuse(_, args, kwargs):
            if len(kwargs["input_ids"]) > limit:
                raise torch.OutOfMemoryError("planted")

        return refuse

    tokens = np.random.default_rng(0).integers(1, 200, (6, 32))
    batch = ContextBatch(
        tokens=tokens, documents=tokens, kept=np.ones_like(tokens, dtype=np.bool_),
        document_positions=tokens, held_out=False, cursor=None,
    )  # fmt: skip
    at_once = BatchForward(model, settings, [(1, "mlp_in")]).run(batch, Silent())
    assert at_once.computed == {torch.device("cpu"): None}  # on a CPU nothing is left to wait for
    handle = model.hugging.base_model.register_forward_pre_hook(small(2), with_kwargs=True)
    halves = BatchForward(model, settings, [(1, "mlp_in")]).run(batch, notes)
    handle.remove()
    assert notes.texts == [f"Out of memory: going on with {size} contexts at a time." for size in (3, 2)]
    assert torch.allclose(at_once.site(1, "mlp_in"), halves.site(1, "mlp_in"), atol=1e-5)
    model.hugging.base_model.register_forward_pre_hook(small(0), with_kwargs=True)
    with pytest.raises(CapacityError, match="One context"):
        BatchForward(model, settings, [(1, "mlp_in")]).run(batch, Silent())
