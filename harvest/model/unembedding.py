"""The unembedding of a language model and the gain of the norm before it, and whether a cache stores them."""

import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cache.storage.unembedding import Unembedding, is_small, stored_bytes
from common.errors import MismatchError, NumericalError
from common.progress import Progress
from harvest.model.language_model import LanguageModel, load_model
from harvest.model.source import ModelSource


def unembedding_of(model: LanguageModel) -> Unembedding:
    """The unembedding in the model's dtype on its device, the gain in float32 on the CPU.

    Raises NumericalError when the unembedding's input does not come from a norm.
    """
    W_U = model.hugging.get_output_embeddings().weight.detach()
    try:
        gain, centred = gain_of(final_norm(model), W_U.shape[1])
    except (ValueError, TypeError, RuntimeError) as error:
        raise NumericalError(f"The final norm's gain is not known: {error}.", where=model.source.name) from None
    return Unembedding(W_U, gain, centred=centred, origin=model.source.name)


def bytes_beside(source: ModelSource, *, rows_bytes: int) -> int:
    """Bytes of the unembedding in a cache with so many bytes of rows; 0 if it is too large to be stored."""
    shape = (source.vocabulary, source.width)
    return stored_bytes(*shape) if is_small(*shape, rows_bytes=rows_bytes) else 0


def arrays_beside(model: LanguageModel, *, rows_bytes: int, progress: Progress) -> dict[str, np.ndarray]:
    """The arrays of a model's unembedding for the caches: none for a large one, or one without a norm before it."""
    if not bytes_beside(model.source, rows_bytes=rows_bytes):
        progress.note("The unembedding is large compared with the rows and not stored: features needs --lm for logits.")
        return {}
    try:
        return unembedding_of(model).arrays()
    except NumericalError as error:
        progress.note(f"The unembedding is not stored, so features will have no logits. {error.what}")
        return {}


def read_unembedding(name: str, *, width: int, revision: str | None) -> Unembedding:
    """The unembedding of a model in float32, on the CPU.

    Raises what ``load_model`` raises, MismatchError for a model of another width, NumericalError when the unembedding's
    input does not come from a norm.
    """
    model = load_model(name, device="cpu", dtype="float32", revision=revision)
    found = unembedding_of(model)
    if found.W_U.shape[1] != width:
        what = f"The model's unembedding has width {found.W_U.shape[1]}, the transcoder's output {width}."
        raise MismatchError(what, where=name, remedy="Name the model that the cache was harvested from.")
    return found


def final_norm(model: LanguageModel) -> torch.nn.Module:
    """The module whose output is the unembedding's input: the last module called that returns that same tensor.

    Raises ValueError if there is none.
    """
    unembed = model.hugging.get_output_embeddings()
    made: list[tuple[torch.nn.Module, int]] = []
    read: list[int] = []

    def remember(module: torch.nn.Module, _arguments: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and not list(module.children()):
            made.append((module, out.data_ptr()))

    def note(_module: torch.nn.Module, arguments: Any) -> None:
        read.append(arguments[0].data_ptr())

    handles = [module.register_forward_hook(remember) for module in model.hugging.modules()]
    handles.append(unembed.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            model.hugging(input_ids=torch.tensor([[0, 1]], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, address in made if address in read and module is not unembed]
    if not found:
        raise ValueError("no module returns the tensor that the unembedding reads")
    return found[-1]


@torch.inference_mode()
def gain_of(norm: torch.nn.Module, width: int) -> tuple[Float[torch.Tensor, " width"], bool]:
    """A norm's gain, and whether it subtracts the mean, from what it computes. Raises ValueError for another module.

    With z = x / rms(x), or the same of x minus its mean, a norm is gain * z + bias, and bias is its result for 0.
    """
    # A copy in float32: in bfloat16 the rounding of the norm's output would hide the exact gain.
    norm = copy.deepcopy(norm).float()
    draw = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(next(norm.parameters()).device)
    bias = norm(torch.zeros_like(draw))
    made = norm(draw) - bias
    for centred in (False, True):
        moved = draw - (draw.mean(dim=1, keepdim=True) if centred else 0)
        gain = made / (moved / moved.square().mean(dim=1, keepdim=True).sqrt())
        # Two random inputs must give the same gain. The norm's epsilon and float32 differ far less, another norm far
        # more.
        if torch.allclose(gain[0], gain[1], rtol=0.05, atol=1e-2):
            return gain.mean(dim=0).cpu(), centred
    raise ValueError("the module is neither a layer norm nor a root-mean-square norm")
