"""A dictionary with the interface of SAEBench's custom SAEs, and which of SAEBench's metrics are valid for it.

SAEBench (as of version 0.6.0) has one hook point for an SAE's input and output. So for a transcoder:

    sparse_probing, sparse_probing_sae_probes, autointerp    valid: they encode what comes out of ``cfg.hook_name``
    meta_structure                                           valid: it looks at decoder rows alone
    core, scr, tpp, ravel, unlearning, mdl                   refused: they put ``decode`` where they read
    absorption                                               refused: it reads ``hook_resid_post`` whatever the hook
                                                             point, and holds decoder rows against probes there

An autoencoder (source and target the same site) is given whole; its absorption means something at ``resid_post`` alone.
``nestcoder evaluate`` measures absorption of transcoders. Nothing here imports SAEBench.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UsageError
from evaluate.spliced.replace import SitePair
from evaluate.spliced.transformer_lens import hook_read
from transcoder.transcoder import Transcoder

_DECODED = (
    "A transcoder's output is another tensor than its input: SAEBench's core, scr, tpp, ravel and unlearning "
    "would put the output in place of the input, and measure something else."
)
_PROJECTED = (
    "A transcoder's decoder rows are in the space of its output: SAEBench's absorption compares them with probes of "
    "the residual stream, and would measure something else."
)


@dataclass
class SAEBenchConfig:
    """What SAEBench reads of an SAE's configuration, under its names."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int
    architecture: str
    dtype: str = "float32"
    device: str = "cpu"
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = False
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def __post_init__(self) -> None:
        self.activation_fn_kwargs: dict[str, Any] = {}
        self.model_from_pretrained_kwargs: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


class SAEBenchAdapter(nn.Module):
    """Give it as ``selected_saes=[("name", nestcoder.SAEBenchAdapter(transcoder, model_name="gpt2"))]``.

    ``model_name`` is the one that SAEBench's own options name; the layer and the hook point follow from the
    dictionary's config.json (``layer`` where that has none). ``context_size`` is how many tokens autointerp shows.
    Raises UsageError for a dictionary that reads what no hook point of TransformerLens gives, or without a layer.
    """

    def __init__(
        self, transcoder: Transcoder, *, model_name: str, layer: int | None = None, context_size: int = 128
    ) -> None:
        super().__init__()
        found = transcoder.config.get("layer", layer)
        if found is None:
            raise UsageError(f"{transcoder.name} does not say its layer.", remedy="Give layer=.")
        sites = SitePair.from_facts(transcoder.config, location=transcoder.name)
        name, self._view = hook_read(transcoder, int(found))
        self._transcoder = transcoder
        self._is_autoencoder = sites.source == sites.target
        self.dtype = torch.float32
        self.cfg = SAEBenchConfig(
            model_name=model_name,
            d_in=transcoder.d_source,
            d_sae=transcoder.prefix,
            hook_layer=int(found),
            hook_name=name,
            context_size=context_size,
            architecture=transcoder.rule.name,
            device=str(self.device),
        )

    @property
    def device(self) -> torch.device:
        """Where the dictionary lies."""
        return self._transcoder.b_enc.device

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802 - SAEBench's name
        """The encoder as SAEBench lays it out, up to the prefix."""
        return self._transcoder.W_enc[: self._transcoder.prefix].T

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        """The encoder's bias, up to the prefix."""
        return self._transcoder.b_enc[: self._transcoder.prefix]

    @property
    def b_dec(self) -> Float[Tensor, " d_target"]:
        """The decoder's bias."""
        return self._transcoder.b_dec

    @property
    def W_dec(self) -> "Tensor | DecoderElsewhere":  # noqa: N802
        """The decoder; of a transcoder one that answers for its shape and norms, and refuses to be projected on."""
        rows = self._transcoder.W_dec[: self._transcoder.prefix]
        return rows if self._is_autoencoder else DecoderElsewhere(rows)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The features of what the hook point gives."""
        rows = self._view(x.flatten(0, -2).to(self.device).float())
        code = self._transcoder.sparse_code(rows).dense(self._transcoder.dict_size)[:, : self._transcoder.prefix]
        return code.to(x.dtype).unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction. Raises UsageError for a transcoder."""
        if not self._is_autoencoder:
            raise UsageError(_DECODED, remedy="Measure it with 'nestcoder evaluate --lm'.")
        rows = self._transcoder.decode(feature_acts.flatten(0, -2).float())
        return rows.to(feature_acts.dtype).unflatten(0, feature_acts.shape[:-1])

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Encoded and decoded. Raises UsageError for a transcoder."""
        return self.decode(self.encode(x))

    def to(self, *args: Any, **kwargs: Any) -> "SAEBenchAdapter":
        """Only the device is followed: features are computed in float32, and given back in the dtype of what came."""
        device = kwargs.get("device", next((item for item in args if not isinstance(item, torch.dtype)), None))
        if device is not None:
            self._transcoder = self._transcoder.on(device)
        self.dtype = kwargs.get("dtype", self.dtype)
        return self


class DecoderElsewhere:
    """Decoder rows of another space than the encoder's: their shape and norms, and a refusal for the rest."""

    def __init__(self, rows: Float[Tensor, "d_sae d_target"]) -> None:
        self.data = rows.detach()
        self.shape = rows.shape
        self.dtype = rows.dtype
        self.device = rows.device

    def detach(self) -> Float[Tensor, "d_sae d_target"]:
        """The rows, without gradients."""
        return self.data

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], *_: Any, **__: Any) -> Any:
        raise UsageError(_PROJECTED, remedy="'nestcoder evaluate' measures absorption where a transcoder writes.")

    def __truediv__(self, _: object) -> Any:
        raise UsageError(_PROJECTED, remedy="'nestcoder evaluate' measures absorption where a transcoder writes.")
