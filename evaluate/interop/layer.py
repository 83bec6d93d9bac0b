"""One layer of an export: its transcoder, its rows, and what several formats share, computed once."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from common.errors import UsageError
from common.norm import NormAffine
from common.progress import Progress
from evaluate.held_out import open_held_out
from evaluate.interop.convert import Wish, refusal
from evaluate.interop.fidelity import Fidelity, fidelity
from evaluate.interop.thresholds import calibration_source, matched_thresholds
from evaluate.memory import batch_rows_for
from evaluate.reference import check_belongs
from evaluate.replay import Replay
from transcoder.formats.about import About
from transcoder.formats.native import load_transcoder
from transcoder.formats.sites import SITES, Site
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder

# A threshold is a quantile of pre-activations: of a feature that fires on one row in a thousand these hold 33 firings.
CALIBRATION_ROWS = 32_768
HELD_OUT_ROWS = 131_072
"""Held-out rows on which a dictionary is measured before and after, by default."""
_CHECKED_ROWS = 256
"""Rows on which the written file must compute what was measured."""


@dataclass(frozen=True)
class LayerSource:
    """Where a layer's cache and its transcoder lie."""

    layer: int
    cache: Path
    transcoder: Path


@dataclass(frozen=True)
class ExportRequest:
    """What to write, and where. ``to`` are names of formats; ``fresh`` replaces an export of another dictionary."""

    to: tuple[str, ...]
    out: Path
    wish: Wish = field(default_factory=Wish)
    fresh: bool = False
    calibration_rows: int = CALIBRATION_ROWS
    held_out_rows: int = HELD_OUT_ROWS


@dataclass
class ExportLayer:
    """A layer's transcoder with its rows: what several formats share is computed once."""

    source: LayerSource
    request: ExportRequest
    device: str
    progress: Progress
    cache_settings: CacheSettings | None

    @cached_property
    def trained(self) -> Transcoder:
        """The transcoder, whose ``source_view`` says what it reads whatever the cache stores."""
        site = self._sites[0]
        return self._loaded.replaced(source_view="ln2_normalized" if site == "ln2_normalized" else "mlp_in")

    @cached_property
    def _loaded(self) -> Transcoder:
        return load_transcoder(self.source.transcoder, progress=self.progress).on(self.device)

    @cached_property
    def about(self) -> About:
        """Where the transcoder lies in its model, as its cache says."""
        identity = self.reader.identity
        source, target = self._sites
        dataset = identity.get("dataset")
        return About(
            model=str(identity.get("model", self.trained.config.get("model"))),
            layer=self.source.layer,
            source_site=source,
            target_site=target,
            architecture=str(identity.get("architecture") or ""),
            layers_of_model=identity.get("layers_of_model"),
            context=identity.get("context"),
            begins_with_bos=identity.get("bos") is not None,
            dataset=str(dataset.get("name") or dataset.get("kind", "")) if isinstance(dataset, dict) else "",
        )

    @cached_property
    def _sites(self) -> tuple[Site, Site]:
        source, target = (self.reader.identity.get(f"{role}_site") for role in ("source", "target"))
        if self._loaded.source_view == "ln2_normalized":
            source = "ln2_normalized"
        if source not in SITES or target not in SITES:
            what = f"The transcoder goes from {source} to {target}, which no other tool reads."
            raise UsageError(what, where=self.source.transcoder)
        return source, target

    @cached_property
    def reader(self) -> CacheReader:
        """The cache; of an autoencoder, its one side."""
        return open_cache(self.source.cache, self.cache_settings, device=self.device, column=self._loaded.column)

    @cached_property
    def norm(self) -> NormAffine | None:
        """The norm's gain and bias, where the cache stores them."""
        return NormAffine.of_arrays(self.reader.arrays)

    @cached_property
    def replay(self) -> Replay:
        """What replays the held-out rows."""
        rows = batch_rows_for(self.trained, self.device)
        return Replay(open_held_out(self.reader), rows, self.device, self.progress)

    @cached_property
    def thresholds(self) -> JumpReLU:
        """Thresholds in place of top-k, matched on training rows."""
        trained = self.fed(self.trained)
        rows = self.request.calibration_rows
        source = calibration_source(self.reader, trained, rows=rows, device=self.device)
        return matched_thresholds(trained, source, progress=self.progress)

    @cached_property
    def before(self) -> Fidelity:
        """Of the transcoder as it was trained, every prefix."""
        return self.measured(self.trained)

    def measured(self, transcoder: Transcoder) -> Fidelity:
        """FVU and L0 on the held-out rows."""
        return fidelity(self.replay, self.fed(transcoder), rows=self.request.held_out_rows)

    def fed(self, transcoder: Transcoder) -> Transcoder:
        """The same, asking the reader for the view that the cache has for it."""
        if transcoder.source_view == self.reader.identity.get("source_site"):
            return transcoder.replaced(source_view="mlp_in")  # as stored
        return transcoder

    def checked_rows(self, transcoder: Transcoder) -> Float[Tensor, "rows d_source"]:
        """A few sources, in the view that ``transcoder`` reads. A special token's is large, and would hide errors."""
        held_out = self.replay.held_out
        index = np.flatnonzero(~held_out.special)[:_CHECKED_ROWS].astype(np.int64)
        return held_out.view.rows(index, view=self.fed(transcoder).source_view).source.to(self.device).float()

    def check(self) -> None:
        """Refuse what cannot be exported, before anything is measured."""
        check_belongs(self.trained, self.reader, path=self.source.transcoder, force=False)
        size = self.request.wish.prefix
        if size is not None and size not in self.trained.prefixes:
            what = f"{size} is not a prefix of this transcoder; it has {list(self.trained.prefixes)}."
            raise UsageError(what, where=self.source.transcoder)
        view = self.request.wish.source_view
        if self.about.is_autoencoder and view not in (None, self.about.source_site):
            what = f"This dictionary is an autoencoder of {self.about.source_site}, so it cannot read {view}."
            raise UsageError(what, where=self.source.transcoder, remedy="Leave out --source-view.")
        for name in self.request.to:
            refused = refusal(name, self.trained, self.about)
            if refused:
                raise refused
