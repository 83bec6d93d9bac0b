"""The change of input that lets a dictionary trained on the normalised residual read our cache.

A dictionary trained on the normalised residual x, before the norm's gain g and bias beta, reads our cache's
m = x * g + beta when both are folded into its encoder, exactly:

    W_enc' = diag(1 / g) W_enc         b_enc' = b_enc - beta @ W_enc'
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from common.errors import NumericalError
from transcoder.dictionary import Dictionary
from transcoder.weights import Weights, feature_major


def fold_gain(
    dictionary: Dictionary, *, gain: Float[Tensor, " d_source"], bias: Float[Tensor, " d_source"] | None
) -> Dictionary:
    """The same dictionary reading ``mlp_in`` instead of ``ln2_normalized``. NumericalError where a gain is 0."""
    assert dictionary.source_view == "ln2_normalized"
    if not bool((gain != 0).all()):
        what = "The norm's gain is 0 in some dimension, so its input cannot be recovered from the MLP's."
        raise NumericalError(what, remedy="Harvest with source ln2_normalized.")
    before = dictionary.weights
    W_enc = before.W_enc.double() / gain.double()[:, None]
    b_enc = before.b_enc.double()
    if bias is not None:
        b_enc = b_enc - bias.double() @ W_enc
    skip = None if before.W_skip is None else before.W_skip.double() / gain.double()[:, None]
    b_dec = before.b_dec.double()
    if skip is not None and bias is not None:
        b_dec = b_dec - bias.double() @ skip
    weights = Weights(
        W_enc=feature_major(W_enc.float()),
        b_enc=b_enc.float(),
        W_dec=before.W_dec,
        b_dec=b_dec.float(),
        W_skip=None if skip is None else skip.float(),
    )
    return replace(dictionary, weights=weights, source_view="mlp_in")
