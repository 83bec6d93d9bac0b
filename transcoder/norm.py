"""Makes a transcoder of the normalised residual read the MLP's input, or the other way round, exactly: folds the norm's
gain and bias (``common/norm.py``: m = x * gain + bias) into the encoder.

    x to m:   W_enc' = W_enc diag(1 / gain)    b_enc' = b_enc - W_enc' @ bias
    m to x:   W_enc' = W_enc diag(gain)        b_enc' = b_enc + W_enc @ bias
"""

from torch import Tensor
from torch.nn.functional import pad

from common.errors import NumericalError
from common.norm import NormAffine
from transcoder.transcoder import Transcoder


def fold_gain(transcoder: Transcoder, norm: NormAffine) -> Transcoder:
    """The same transcoder reading ``mlp_in`` instead of ``ln2_normalized``. NumericalError where a gain is 0."""
    assert transcoder.source_view == "ln2_normalized"
    if not norm.is_invertible:
        what = "The norm's gain is 0 in a dimension, so the norm's input cannot be computed from the MLP's input."
        raise NumericalError(what, remedy="Harvest with source ln2_normalized.")
    gain = norm.gain.double()
    folded = _substituted(transcoder, scale=1 / gain, shift=-norm.bias.double() / gain)
    return folded.replaced(source_view="mlp_in")


def unfold_gain(transcoder: Transcoder, norm: NormAffine) -> Transcoder:
    """The same transcoder reading ``ln2_normalized`` instead of ``mlp_in``."""
    assert transcoder.source_view == "mlp_in"
    unfolded = _substituted(transcoder, scale=norm.gain.double(), shift=norm.bias.double())
    return unfolded.replaced(source_view="ln2_normalized")


def _substituted(transcoder: Transcoder, *, scale: Tensor, shift: Tensor) -> Transcoder:
    """The transcoder of z that does to z what this one does to its source, ``z * scale + shift``; in float64."""
    device = transcoder.W_enc.device
    scale = scale.to(device)
    shift = shift.to(device)
    b_dec = transcoder.b_dec.double()
    skip = None if transcoder.W_skip is None else transcoder.W_skip.double()
    if skip is not None:
        b_dec = b_dec + pad(shift @ skip, (0, len(b_dec) - skip.shape[1]))
    return transcoder.replaced(
        W_enc=(transcoder.W_enc.double() * scale).float(),
        b_enc=(transcoder.b_enc.double() + transcoder.W_enc.double() @ shift).float(),
        b_dec=b_dec.float(),
        W_skip=None if skip is None else (skip * scale[:, None]).float(),
    )
