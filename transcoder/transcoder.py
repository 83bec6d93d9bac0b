"""The transcoder: its arrays, the rule that selects features, and every prefix's reconstruction.

    pre = source @ W_enc.T + b_enc
    a   = rule(pre)                                             the active features, as sparse rows
    y_p = b_dec + a[:, :p] @ W_dec[:p]  (+ source @ W_skip)     for every prefix p

There is one selection, over the whole dictionary; a prefix uses the selected features below its end. ``b_dec`` is never
subtracted from the source, which is in another space. Our transcoders and those of other tools are all of this class,
so that no metric can treat them differently.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from common.errors import UsageError
from transcoder.decode import decode_prefixes
from transcoder.prefilter import BLOCK_ROWS, Prefilter, prefilter_of
from transcoder.rules.rule import Rule
from transcoder.rules.topk import TopK
from transcoder.sparse_code import SparseCode, stacked

SourceView = Literal["mlp_in", "ln2_normalized"]
"""What the encoder reads: the MLP's input, or the same before the norm's gain and bias."""


class Transcoder(nn.Module):
    """A nested transcoder, as a torch module.

        W_enc   (dict_size, d_source)    one row a feature, as W_dec
        b_enc   (dict_size,)
        W_dec   (dict_size, d_target)
        b_dec   (d_target,)
        W_skip  (d_source, d_target)     only where there is a skip

    A skip of fewer columns writes to the first dimensions of the target (transcoder/cross_layer.py).

    Sources are in the view that ``source_view`` names. ``prefixes`` are cumulative and end at ``dict_size``;
    ``prefix`` is the one in use: the last, unless truncated. ``tokens_trained`` and ``nominal_l0`` are None where they
    are not known. ``config`` is its config.json, empty for one that was not loaded.

    Every method is differentiable, but arrays need ``requires_grad_()`` first: most transcoders are only read.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None

    def __init__(
        self,
        W_enc: Float[Tensor, "dict_size d_source"],
        b_enc: Float[Tensor, " dict_size"],
        W_dec: Float[Tensor, "dict_size d_target"],
        b_dec: Float[Tensor, " d_target"],
        W_skip: Float[Tensor, "d_source d_skip"] | None = None,
        *,
        rule: Rule,
        prefixes: tuple[int, ...] | None = None,
        prefix: int | None = None,
        name: str = "transcoder",
        source_view: SourceView = "mlp_in",
        tokens_trained: int | None = None,
        nominal_l0: float | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.W_enc = _parameter(W_enc)
        self.b_enc = _parameter(b_enc)
        self.W_dec = _parameter(W_dec)
        self.b_dec = _parameter(b_dec)
        self.register_parameter("W_skip", None if W_skip is None else _parameter(W_skip))
        self.rule = rule
        self.prefixes = (self.dict_size,) if prefixes is None else tuple(prefixes)
        self.prefix = self.prefixes[-1] if prefix is None else prefix
        self.name = name
        self.source_view: SourceView = source_view
        self.tokens_trained = tokens_trained
        self.nominal_l0 = nominal_l0
        self.config: Mapping[str, Any] = {} if config is None else config
        self._prefilter: tuple[object, Prefilter | None] | None = None
        assert self.prefixes[-1] == self.dict_size, "the last prefix is the whole dictionary"
        assert list(self.prefixes) == sorted(set(self.prefixes)), "prefixes are cumulative and strictly increasing"

    @staticmethod
    def from_arrays(arrays: Mapping[str, Tensor], *, rule: Rule, **facts: Any) -> "Transcoder":
        """From arrays by name and the constructor's other arguments."""
        given: dict[str, Any] = {**arrays, **facts}
        return Transcoder(**given, rule=rule)

    @property
    def dict_size(self) -> int:
        """How many features there are."""
        return self.b_enc.numel()

    @property
    def d_source(self) -> int:
        """Width of what the encoder reads."""
        return self.W_enc.shape[1]

    @property
    def d_target(self) -> int:
        """Width of what the decoder writes."""
        return self.b_dec.numel()

    @property
    def top_k(self) -> int | None:
        """The selection rule's k; None for a rule without one."""
        return self.rule.top_k

    @property
    def kind(self) -> str:
        """``transcoder``, or ``sae`` for an autoencoder, whose source is its target."""
        return self.config.get("kind", "transcoder")

    @property
    def column(self) -> Literal["source", "target"] | None:
        """The column of its cache (source or target) that an autoencoder reads and reconstructs; None for a
        transcoder."""
        return self.config.get("side")

    @property
    def groups(self) -> tuple[range, ...]:
        """The features that each prefix adds to the one before."""
        return tuple(range(start, end) for start, end in zip((0, *self.prefixes[:-1]), self.prefixes, strict=True))

    def arrays(self) -> dict[str, nn.Parameter]:
        """The arrays by name, in a fixed order; ``W_skip`` only where there is one."""
        return dict(self.named_parameters(recurse=False))

    def pre_activations(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows dict_size"]:
        """What the rule selects from, in the weights' dtype."""
        return torch.addmm(self.b_enc, source.to(self.b_enc.dtype), self.W_enc.T)

    def select(self, source: Float[Tensor, "rows d_source"]) -> SparseCode:
        """The sparse code over the whole dictionary, for every prefix."""
        return self.rule(self.pre_activations(source))

    def encode(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows features"]:
        """The dense code; only the features of the prefix in use."""
        return self.select(source).dense(self.dict_size)[:, : self.prefix]

    def decode(
        self,
        code: Float[Tensor, "rows features"],
        *,
        prefix: int | None = None,
        source: Float[Tensor, "rows d_source"] | None = None,
    ) -> Float[Tensor, "rows d_target"]:
        """The reconstruction from features below ``prefix``; ``source`` is needed if there is a skip."""
        end = self._checked(prefix)
        return self._base(source) + code[:, :end] @ self.W_dec[:end]

    def forward(
        self, source: Float[Tensor, "rows d_source"], *, prefix: int | None = None
    ) -> Float[Tensor, "rows d_target"]:
        """The reconstruction of the target by one prefix."""
        end = self._checked(prefix)
        return self.reconstructions(source)[:, self.prefixes.index(end)]

    def reconstructions(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows prefixes d_target"]:
        """The reconstruction by every prefix, from one sparse decode."""
        return self.reconstruct(self.select(source), source)

    def reconstruct(
        self, code: SparseCode, source: Float[Tensor, "rows d_source"]
    ) -> Float[Tensor, "rows prefixes d_target"]:
        """The reconstruction by every prefix from the sparse code of ``source``."""
        return decode_prefixes(code, self.W_dec, self._base(source), prefixes=self.prefixes)

    @torch.no_grad()
    def sparse_code(self, source: Float[Tensor, "rows d_source"]) -> SparseCode:
        """The same selection as ``select`` for many rows, without gradients: what evaluation uses.

        On a CPU the pre-activations exist for one block of rows at a time. For rows in bfloat16, as in caches, only
        those that may be selected are computed, if that is faster (transcoder/prefilter.py).
        """
        if source.dtype == torch.bfloat16 and (prefilter := self._current_prefilter()):
            return stacked([prefilter.select(rows) for rows in source.split(BLOCK_ROWS)])
        blocks = source.to(self.W_enc.dtype).split(len(source) if source.is_cuda else BLOCK_ROWS)
        pre = self.W_enc.new_empty(len(blocks[0]), self.dict_size)
        W_enc = self.W_enc.T
        return stacked([self.rule(torch.addmm(self.b_enc, rows, W_enc, out=pre[: len(rows)])) for rows in blocks])

    def truncate(self, prefix: int) -> "Transcoder":
        """The same transcoder using one prefix: the same selection, sliced. Raises UsageError for another number."""
        return self.replaced(prefix=self._checked(prefix))

    def at_top_k(self, top_k: int) -> "Transcoder":
        """The same arrays, evaluated with the ``top_k`` largest features of every row: for comparing at equal L0."""
        return self.replaced(rule=TopK(top_k), name=f"{self.name} at k = {top_k}")

    def on(self, device: str | torch.device) -> "Transcoder":
        """A copy on ``device`` in float32, which shares arrays that are there already; ``to`` would move this one."""
        moved = {name: array.to(device, torch.float32) for name, array in self.arrays().items()}
        return self.replaced(rule=deepcopy(self.rule).to(device), **moved)

    def replaced(self, **changes: Any) -> "Transcoder":
        """A transcoder that shares this one's arrays and differs in ``changes``, named as in the constructor."""
        facts = ("rule", "prefixes", "prefix", "name", "source_view", "tokens_trained", "nominal_l0", "config")
        same: dict[str, Any] = {**self.arrays(), **{name: getattr(self, name) for name in facts}}
        return Transcoder(**(same | changes))

    def _base(self, source: Tensor | None) -> Tensor:
        """What all prefixes share."""
        if self.W_skip is None:
            return self.b_dec
        if source is None:
            raise UsageError("This transcoder has a skip: decode needs the source too.", remedy="Give decode source=.")
        if self.W_skip.shape[1] < self.d_target:
            skipped = source.to(self.b_dec.dtype) @ self.W_skip
            return self.b_dec + pad(skipped, (0, self.d_target - self.W_skip.shape[1]))
        return torch.addmm(self.b_dec, source.to(self.b_dec.dtype), self.W_skip)

    def _checked(self, prefix: int | None) -> int:
        end = self.prefix if prefix is None else prefix
        if end not in self.prefixes or end > self.prefix:
            known = [prefix for prefix in self.prefixes if prefix <= self.prefix]
            raise UsageError(f"{end} is not a prefix of this transcoder; it has {known}.")
        return end

    def _current_prefilter(self) -> Prefilter | None:
        """The prefilter of the present encoder; made again after the encoder was moved or changed."""
        state = (self.rule, *((array.data_ptr(), array._version) for array in (self.W_enc, self.b_enc)))
        if self._prefilter is None or self._prefilter[0] != state:
            self._prefilter = (state, prefilter_of(self.W_enc.detach(), self.b_enc.detach(), self.rule))
        return self._prefilter[1]


def _parameter(array: Tensor) -> nn.Parameter:
    """The array as a parameter; if it is one already, it is shared, with its gradient."""
    return array if isinstance(array, nn.Parameter) else nn.Parameter(array, requires_grad=False)


def random_arrays(
    d_source: int,
    d_target: int,
    *,
    dict_size: int,
    skip: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Encoder and decoder rows of norm 1, zero biases and skip: for timing, benchmarks and tests."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(dict_size, d_source, generator=generator, dtype=dtype)
    decoder = torch.randn(dict_size, d_target, generator=generator, dtype=dtype)
    arrays = {
        "W_enc": nn.functional.normalize(encoder, dim=1),
        "b_enc": torch.zeros(dict_size, dtype=dtype),
        "W_dec": nn.functional.normalize(decoder, dim=1),
        "b_dec": torch.zeros(d_target, dtype=dtype),
    }
    return arrays | ({"W_skip": torch.zeros(d_source, d_target, dtype=dtype)} if skip else {})
