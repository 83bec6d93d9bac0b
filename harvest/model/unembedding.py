"""The unembedding of a language model and the gain of the norm that it reads, and whether a cache stores them."""

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
    """The unembedding in the model's dtype and where it lies, the gain in float32 on the CPU.

    Raises NumericalError where the unembedding does not read a norm.
    """
    W_U = model.hugging.get_output_embeddings().weight.detach()
    try:
        gain, centred = gain_of(final_norm(model), W_U.shape[1])
    except (ValueError, TypeError, RuntimeError) as error:
        raise NumericalError(f"The final norm's gain cannot be told: {error}.", where=model.source.name) from None
    return Unembedding(W_U, gain, centred=centred, origin=model.source.name)


def bytes_beside(source: ModelSource, *, rows_bytes: int) -> int:
    """What a cache of so many bytes of rows stores of a model's unembedding; 0 where it is too large for that."""
    shape = (source.vocabulary, source.width)
    return stored_bytes(*shape) if is_small(*shape, rows_bytes=rows_bytes) else 0


def arrays_beside(model: LanguageModel, *, rows_bytes: int, progress: Progress) -> dict[str, np.ndarray]:
    """What the caches store of a model's unembedding: nothing of a large one, or of one that reads no norm."""
    if not bytes_beside(model.source, rows_bytes=rows_bytes):
        progress.note("the unembedding is large beside the rows and not stored: features needs --lm for logits")
        return {}
    try:
        return unembedding_of(model).arrays()
    except NumericalError as error:
        progress.note(f"the unembedding is not stored, features will have no logits. {error.what}")
        return {}


def read_unembedding(name: str, *, width: int, revision: str | None) -> Unembedding:
    """The unembedding of a model in float32, on the CPU.

    Raises what ``load_model`` raises, MismatchError for a model of another width, NumericalError where the unembedding
    does not read a norm.
    """
    model = load_model(name, device="cpu", dtype="float32", revision=revision)
    found = unembedding_of(model)
    if found.W_U.shape[1] != width:
        what = f"The model's unembedding has width {found.W_U.shape[1]}, the transcoder writes {width}."
        raise MismatchError(what, where=name, remedy="Name the model that the cache was harvested from.")
    return found


def final_norm(model: LanguageModel) -> torch.nn.Module:
    """The module whose output the unembedding reads: the last one called that puts out that very tensor.

    Raises ValueError where there is none.
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
        raise ValueError("no module puts out what the unembedding reads")
    return found[-1]


@torch.inference_mode()
def gain_of(norm: torch.nn.Module, width: int) -> tuple[Float[torch.Tensor, " width"], bool]:
    """A norm's gain, and whether it subtracts the mean, found from what it computes. Raises ValueError for no norm.

    With z = x / rms(x), or the same of x less its mean, a norm is gain * z + bias, and bias is what it makes of 0.
    """
    # A copy in float32, where the gain of a model in bfloat16 is not lost in the rounding of what the norm puts out.
    norm = copy.deepcopy(norm).float()
    draw = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(next(norm.parameters()).device)
    bias = norm(torch.zeros_like(draw))
    made = norm(draw) - bias
    for centred in (False, True):
        moved = draw - (draw.mean(dim=1, keepdim=True) if centred else 0)
        gain = made / (moved / moved.square().mean(dim=1, keepdim=True).sqrt())
        if torch.allclose(gain[0], gain[1], rtol=0.05, atol=1e-2):
            return gain.mean(dim=0).cpu(), centred
    raise ValueError("the module is neither a layer norm nor a root-mean-square norm")
