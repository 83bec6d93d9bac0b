"""Which features are dead: how many tokens each has seen since it last fired. Part of every checkpoint."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def count_tokens_(since_fired: Int[Tensor, " dict_size"], fired: Bool[Tensor, " dict_size"], *, tokens: int) -> None:
    """A batch of ``tokens`` rows went by: 0 for the features that fired in it, so many more for the others."""
    since_fired.add_(tokens).masked_fill_(fired, 0)


def dead_features(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int) -> Int[Tensor, " dead"]:
    """The features that have not fired for ``after_tokens`` tokens, ascending."""
    return (since_fired >= after_tokens).nonzero().flatten()


def tokens_left(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int) -> int:
    """How many tokens go by before any feature can be dead; 0 or less where one is. Waits for the device."""
    return after_tokens - int(since_fired.max())


def dead_share(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int) -> Float[Tensor, ""]:
    """The share of the dictionary that is dead."""
    return (since_fired >= after_tokens).double().mean()
