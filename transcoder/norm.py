"""The norm before an MLP, without its centring and scaling: the gain and bias that follow, as a change of variables.

    m = x * gain + bias        x the normalised residual (ln2_normalized), m what the MLP consumes (mlp_in)

A transcoder that was trained on x reads m when the change is folded into its encoder, exactly:

    W_enc' = W_enc diag(1 / gain)         b_enc' = b_enc - W_enc' @ bias
"""

from jaxtyping import Float
from torch import Tensor

from common.errors import NumericalError
from transcoder.transcoder import Transcoder


def fold_gain(
    transcoder: Transcoder, *, gain: Float[Tensor, " d_source"], bias: Float[Tensor, " d_source"] | None
) -> Transcoder:
    """The same transcoder reading ``mlp_in`` instead of ``ln2_normalized``. NumericalError where a gain is 0."""
    assert transcoder.source_view == "ln2_normalized"
    if not bool((gain != 0).all()):
        what = "The norm's gain is 0 in some dimension, so its input cannot be recovered from the MLP's."
        raise NumericalError(what, remedy="Harvest with source ln2_normalized.")
    W_enc = transcoder.W_enc.double() / gain.double()
    b_enc = transcoder.b_enc.double()
    b_dec = transcoder.b_dec.double()
    skip = None if transcoder.W_skip is None else transcoder.W_skip.double() / gain.double()[:, None]
    if bias is not None:
        b_enc = b_enc - W_enc @ bias.double()
        b_dec = b_dec if skip is None else b_dec - bias.double() @ skip
    return transcoder.replaced(
        W_enc=W_enc.float(),
        b_enc=b_enc.float(),
        b_dec=b_dec.float(),
        W_skip=None if skip is None else skip.float(),
        source_view="mlp_in",
    )
