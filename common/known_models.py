"""The models with a short name. A new one needs only a line here, for every stage and command."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """A model of the Hugging Face Hub.

    ``repository`` is its name there, ``width`` the width of its residual stream, and ``parameters`` the number of its
    weights, with tied embeddings counted once. ``top_k`` is the default for transcoders of this model.
    """

    repository: str
    width: int
    parameters: int
    top_k: int


KNOWN_MODELS = {
    "gpt2": KnownModel("openai-community/gpt2", width=768, parameters=124_439_808, top_k=64),
    "gpt2-medium": KnownModel("openai-community/gpt2-medium", width=1024, parameters=354_823_168, top_k=64),
    "gpt2-large": KnownModel("openai-community/gpt2-large", width=1280, parameters=774_030_080, top_k=64),
    "gpt2-xl": KnownModel("openai-community/gpt2-xl", width=1600, parameters=1_557_611_200, top_k=64),
    "gemma-2-2b": KnownModel("google/gemma-2-2b", width=2304, parameters=2_614_341_888, top_k=96),
    "gemma-2-9b": KnownModel("google/gemma-2-9b", width=3584, parameters=9_241_705_984, top_k=96),
    "gemma-2-27b": KnownModel("google/gemma-2-27b", width=4608, parameters=27_227_128_320, top_k=96),
}


def repository_of(name: str) -> str:
    """The Hub's name of a model: from the table for a short name, else the name itself."""
    known = KNOWN_MODELS.get(name)
    return known.repository if known else name
