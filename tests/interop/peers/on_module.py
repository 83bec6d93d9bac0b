"""The loss of a Hugging Face model with a dictionary hooked on one of its modules."""

from collections.abc import Callable, Iterator

import torch
import transformers.utils

try:
    import torchvision  # noqa: F401
except Exception:  # a build for CUDA beside a torch without it, which breaks every model of transformers
    transformers.utils.is_torchvision_available = lambda: False
from transformers import AutoModelForCausalLM

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


def losses(
    folder: str, tokens: torch.Tensor, dictionaries: Iterator[tuple[str, str, bool, Reconstruct]]
) -> dict[str, dict[str, float]]:
    """Cross-entropy of one context, clean and with each dictionary: (its name, the module's path, whether it reads what
    the module writes, what it makes of rows)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def loss() -> dict[str, float]:
        logits = model(tokens).logits[0, :-1]
        return {"cross_entropy": float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))}

    with torch.no_grad():
        found = {"clean": loss()}
        for name, path, reads_output, reconstruct in dictionaries:

            def replaced(
                _module: object,
                args: tuple[torch.Tensor],
                output: torch.Tensor,
                reads_output: bool = reads_output,
                reconstruct: Reconstruct = reconstruct,
            ) -> torch.Tensor:
                read = output if reads_output else args[0]
                return reconstruct(read.flatten(0, 1)).view_as(output)

            handle = model.base_model.get_submodule(path).register_forward_hook(replaced)
            found[name] = loss()
            handle.remove()
    return found
