"""A transcoder that was trained on the normalised residual reads what the MLP consumes, exactly, once the norm's gain
and bias (``common/norm.py``: m = x * gain + bias) are folded into its encoder:

    W_enc' = W_enc diag(1 / gain)         b_enc' = b_enc - W_enc' @ bias
"""

from common.errors import NumericalError
from common.norm import NormAffine
from transcoder.transcoder import Transcoder


def fold_gain(transcoder: Transcoder, norm: NormAffine) -> Transcoder:
    """The same transcoder reading ``mlp_in`` instead of ``ln2_normalized``. NumericalError where a gain is 0."""
    assert transcoder.source_view == "ln2_normalized"
    if not norm.is_invertible:
        what = "The norm's gain is 0 in some dimension, so its input cannot be recovered from the MLP's."
        raise NumericalError(what, remedy="Harvest with source ln2_normalized.")
    gain = norm.gain.double()
    bias = norm.bias.double()
    W_enc = transcoder.W_enc.double() / gain
    b_enc = transcoder.b_enc.double() - W_enc @ bias
    b_dec = transcoder.b_dec.double()
    skip = None if transcoder.W_skip is None else transcoder.W_skip.double() / gain[:, None]
    if skip is not None:
        b_dec = b_dec - bias @ skip
    return transcoder.replaced(
        W_enc=W_enc.float(),
        b_enc=b_enc.float(),
        b_dec=b_dec.float(),
        W_skip=None if skip is None else skip.float(),
        source_view="mlp_in",
    )
