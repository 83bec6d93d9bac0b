"""Cross-layer transcoders: a feature reads one layer's source and writes to that layer's target and later ones.

    a_s    = rule(W_enc_s x_s + b_enc_s)                                        for every source layer s
    y_t,p  = b_dec_t (+ x_t @ W_skip_t) + sum over s of  a_s[:, :p] @ W_dec_s->t[:p]          s <= t <= s + window

Source layer s is a transcoder whose target is the targets that it writes to, side by side, so one row of its ``W_dec``
is all that a feature writes; and the sum over sources runs over those. Every prefix is of all layers together: the
first p features of each. A window of 0 is a transcoder for every layer, of which none writes to another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.distributed import ALONE, Ranks
from transcoder.decode import bag_sums, bags_of, running_sum_
from transcoder.rules.topk import TopK
from transcoder.sharded import winners
from transcoder.sparse_code import SparseCode, entries_of
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class Reach:
    """Which layers the features of each of ``layers`` layers write to, of targets ``width`` wide.

    Layers are counted from 0 among those of the dictionary, whatever their numbers in the model.
    """

    layers: int
    window: int
    width: int

    def written(self, source: int) -> range:
        """The layers that features of ``source`` write to."""
        return range(source, min(source + self.window + 1, self.layers))

    def wide(self, source: int) -> int:
        """How wide all that they write is."""
        return len(self.written(source)) * self.width

    def add_(
        self,
        total: Float[Tensor, "layers rows prefixes d_target"],
        sums: Float[Tensor, "rows prefixes wide"],
        source: int,
    ) -> None:
        """Add what the features of ``source`` write to the layers that they write to."""
        for layer, block in self.blocks(sums, source):
            total[layer] += block

    def blocks(
        self, written: Float[Tensor, "*rows wide"], source: int
    ) -> Iterator[tuple[int, Float[Tensor, "*rows d_target"]]]:
        """What belongs to each layer that features of ``source`` write to, with the layer."""
        for number, layer in enumerate(self.written(source)):
            yield layer, written[..., number * self.width : (number + 1) * self.width]

    def side_by_side(
        self, by_layer: Float[Tensor, "layers rows *prefixes d_target"], source: int
    ) -> Float[Tensor, "rows *prefixes wide"]:
        """Of something that every layer has, what belongs to the layers that features of ``source`` write to."""
        return torch.cat([by_layer[layer] for layer in self.written(source)], dim=-1)


def largest_over_layers(codes: Sequence[SparseCode], *, count: int, ranks: Ranks = ALONE) -> list[SparseCode]:
    """Of every row the ``count`` largest entries over all codes; each code has a fixed number of entries a row.

    Where several processes have codes of the same rows, those of all of them: what wins there is among each one's own
    ``count`` largest.
    """
    tables = [code.values.view(code.row_count, -1) for code in codes]
    table = torch.cat(tables, dim=1)
    found = table.topk(min(count, table.shape[1]), dim=1, sorted=False)
    is_kept = torch.ones_like(found.indices, dtype=torch.bool)
    if ranks.world > 1:
        is_kept = winners(found.values, count, ranks=ranks)
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(1, found.indices, is_kept)
    widths = [own.shape[1] for own in tables]
    return [entries_of(code, own.flatten()) for code, own in zip(codes, kept.split(widths, dim=1), strict=True)]


def candidates(top_k: int, *, layers: int, dict_size: int) -> int:
    """How many features of one layer could be among the ``top_k`` a layer that are selected over all."""
    return min(top_k * layers, dict_size)


class CrossLayerTranscoder(nn.Module):
    """Source layers as ``pieces``, each a ``Transcoder`` whose target is the targets that it writes to, side by side.

    The piece of a layer has that layer's ``b_dec`` first, and zeros for what it writes to others; a skip, where there
    is one, writes to that layer alone. ``layers`` are their numbers in the model. With ``over_layers``, ``top_k`` times
    as many features as there are layers are selected over all of them; activations are then in units that the layers
    share. ``config`` is its config.json.
    """

    def __init__(
        self,
        pieces: Sequence[Transcoder],
        *,
        layers: Sequence[int],
        window: int,
        top_k: int | None = None,
        over_layers: bool = False,
        name: str = "cross-layer",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)
        self.layers = tuple(layers)
        self.reach = Reach(len(pieces), window, pieces[-1].d_target)
        self.top_k = pieces[0].top_k if top_k is None else top_k
        self.over_layers = over_layers
        self.name = name
        self.config: Mapping[str, Any] = config or {}
        for number, piece in enumerate(pieces):
            assert piece.d_target == self.reach.wide(number), "a piece writes to the layers of its window"
            assert piece.prefixes == self.prefixes, "all layers have the same prefixes"

    @staticmethod
    def of_set(transcoders: Mapping[int, Transcoder], *, name: str = "per-layer") -> "CrossLayerTranscoder":
        """A set of transcoders, by layer, of which none writes to another's layer."""
        ordered = sorted(transcoders)
        return CrossLayerTranscoder([transcoders[layer] for layer in ordered], layers=ordered, window=0, name=name)

    def piece(self, number: int) -> Transcoder:
        """The source layer ``number``, counted from 0 among those there are."""
        found = self.pieces[number]
        assert isinstance(found, Transcoder)
        return found

    def within(self, number: int) -> Transcoder:
        """The features of source layer ``number`` by themselves, writing to that layer alone."""
        piece = self.piece(number)
        width = self.d_target
        return piece.replaced(W_dec=piece.W_dec.detach()[:, :width], b_dec=piece.b_dec.detach()[:width])

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The ends of the nested prefixes, the same in each layer."""
        return self.piece(0).prefixes

    @property
    def dict_size(self) -> int:
        """Features of each layer."""
        return self.piece(0).dict_size

    @property
    def d_target(self) -> int:
        """Dimensions of one layer's target."""
        return self.reach.width

    def on(self, device: str | torch.device) -> "CrossLayerTranscoder":
        """The same on ``device``, in float32."""
        return self.with_pieces([self.piece(number).on(device) for number in range(len(self.layers))])

    def with_pieces(self, pieces: Sequence[Transcoder]) -> "CrossLayerTranscoder":
        """The same with other pieces."""
        return CrossLayerTranscoder(
            pieces,
            layers=self.layers,
            window=self.reach.window,
            top_k=self.top_k,
            over_layers=self.over_layers,
            name=self.name,
            config=self.config,
        )

    @torch.no_grad()
    def codes(self, sources: Sequence[Float[Tensor, "rows d_source"]]) -> list[SparseCode]:
        """The sparse code of every source layer, for the sources of the first of them or of all.

        Selection over layers needs all of them.
        """
        codes = [self.piece(number).sparse_code(source) for number, source in enumerate(sources)]
        if not self.over_layers:
            return codes
        assert len(codes) == len(self.layers), "a selection over layers sees all of them"
        assert self.top_k is not None
        return largest_over_layers(codes, count=self.top_k * len(self.layers))

    def writes(self, number: int, code: SparseCode) -> Float[Tensor, "rows prefixes wide"]:
        """What the features of source layer ``number`` add, prefix by prefix, to the layers that they write to."""
        piece = self.piece(number)
        sums = bag_sums(code, bags_of(code, self.prefixes), piece.W_dec)
        return running_sum_(sums.unflatten(0, (-1, len(self.prefixes))))

    def writes_of_prefix(self, number: int, code: SparseCode, *, prefix: int) -> Float[Tensor, "rows wide"]:
        """The same of one prefix, without the arrays of the others; differentiable."""
        used = entries_of(code, code.features < prefix)
        return bag_sums(used, bags_of(used, (prefix,)), self.piece(number).W_dec)

    @torch.no_grad()
    def reconstructions(
        self, sources: Sequence[Float[Tensor, "rows d_source"]]
    ) -> Float[Tensor, "layers rows prefixes d_target"]:
        """Every layer's target by every prefix."""
        return self.reconstruct(self.codes(sources), sources)

    def reconstruct(
        self, codes: Sequence[SparseCode], sources: Sequence[Float[Tensor, "rows d_source"]]
    ) -> Float[Tensor, "layers rows prefixes d_target"]:
        """The same from the sparse codes of the sources; differentiable where their values or the arrays are."""
        shape = (codes[0].row_count, len(self.prefixes), self.d_target)
        # An array a layer: autograd would copy the whole of one array for every block that is added to a part of it.
        total = [self.base(number, source)[:, None].expand(shape) for number, source in enumerate(sources)]
        for number, code in enumerate(codes):
            for layer, block in self.reach.blocks(self.writes(number, code), number):
                total[layer] = total[layer] + block
        return torch.stack(total)

    def b_dec(self, number: int) -> Float[Tensor, " d_target"]:
        """The bias of layer ``number``."""
        return self.piece(number).b_dec[: self.d_target]

    def base(self, number: int, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_target"]:
        """What all prefixes of layer ``number`` share: its bias, and its skip where there is one."""
        skip = self.piece(number).W_skip
        bias = self.b_dec(number)
        return bias.expand(len(source), -1) if skip is None else torch.addmm(bias, source.to(bias.dtype), skip)

    @property
    def has_skip(self) -> bool:
        """Whether the layers have a skip, each from its own source to its own target."""
        return self.piece(0).W_skip is not None

    def crossing(self) -> list[float]:
        """For every source layer the share of its decoder's squared norm that other layers get.

        Read in the units of training, where every target varies by 1 a dimension, if config.json has those.
        """
        scales = self.config.get("target_scales") or [1.0] * len(self.layers)
        shares: list[float] = []
        for number in range(len(self.layers)):
            blocks = self.piece(number).W_dec.double().unflatten(1, (-1, self.d_target))
            squares = blocks.square().sum(dim=(0, 2))
            scale = torch.tensor([scales[layer] for layer in self.reach.written(number)], dtype=torch.float64)
            weighted = squares.cpu() * scale.square()
            shares.append(float(weighted[1:].sum() / weighted.sum()))
        return shares


def over_all_layers(top_k: int, *, layers: int, dict_size: int) -> TopK:
    """The rule of each piece where selection is over layers: its candidates."""
    return TopK(candidates(top_k, layers=layers, dict_size=dict_size))
