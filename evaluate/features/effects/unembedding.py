"""Takes the unembedding and the final norm's gain out of a language model. Nothing else of evidence needs the model."""

from typing import Any

import torch

from common.errors import MismatchError, NumericalError
from evaluate.features.effects.logits import Unembedding, gain_of
from harvest.model.language_model import LanguageModel, load_model


def read_unembedding(name: str, *, width: int, revision: str | None) -> Unembedding:
    """The unembedding of a model in float32, on the CPU.

    Raises what ``load_model`` raises, MismatchError for a model of another width, NumericalError where the unembedding
    does not read a norm.
    """
    model = load_model(name, device="cpu", dtype="float32", revision=revision)
    W_U = model.hugging.get_output_embeddings().weight
    if W_U.shape[1] != width:
        what = f"The model's unembedding has width {W_U.shape[1]}, the transcoder writes {width}."
        raise MismatchError(what, where=name, remedy="Name the model that the cache was harvested from.")
    try:
        gain, centred = gain_of(final_norm(model), width)
    except ValueError as error:
        raise NumericalError(f"The final norm's gain cannot be told: {error}.", where=name) from None
    return Unembedding(W_U.detach(), gain, centred=centred, origin=name)


def final_norm(model: LanguageModel) -> torch.nn.Module:
    """The module whose output the unembedding reads: the last one called that puts out that very tensor."""
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
            model.hugging(input_ids=torch.tensor([[0, 1]]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, address in made if address in read and module is not unembed]
    if not found:
        raise ValueError("no module puts out what the unembedding reads")
    return found[-1]
