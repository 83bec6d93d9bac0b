"""What a harvest is asked to do, once its model is found and its text is open; no weights are loaded for it."""

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cache.config import CacheSettings
from cache.format.codec import least_bytes
from cache.format.layout import Geometry
from cache.format.manifest import MANIFEST, first_difference, make_geometry, read_manifest
from cache.reader import CacheReader
from common.device import choose_device
from common.errors import MismatchError, UsageError
from harvest.config import HarvestSettings
from harvest.model.language_model import choose_dtype
from harvest.model.source import ModelFolder, check_layers, find_model
from harvest.model.tokenizer import ModelTokenizer, load_tokenizer
from harvest.text.documents import Documents, open_documents
from harvest.text.tokens import ContextStream, StreamSettings


@dataclass(frozen=True)
class Job:
    """The model, the text, the settings, and this process's share of ``world`` processes."""

    where: ModelFolder
    tokenizer: ModelTokenizer
    documents: Documents
    dataset: dict[str, Any]
    settings: HarvestSettings
    cache: CacheSettings
    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int

    @property
    def geometry(self) -> Geometry:
        """How the rows will lie on the disk, the same for every layer."""
        return make_geometry(
            self.cache,
            d_source=self.where.width,
            d_target=self.where.width,
            train_rows=self.settings.train_tokens,
            held_out_rows=self.settings.held_out_tokens,
            parts=self.world,
        )

    @property
    def least_bytes(self) -> int:
        """The room that a layer's cache wants at least."""
        return least_bytes(self.geometry.size_bytes, self.geometry.codec, self.geometry.dtype)

    def identity(self, layer: int) -> dict[str, Any]:
        """Everything that determines the cache's bytes. Left out is what moves rounding alone: device and batch."""
        where, settings = self.where, self.settings
        return {
            "model": posixpath.normpath(where.name),
            "model_revision": where.revision,
            "model_parameters": where.parameters,
            "weights_hash": where.weights_hash,
            "tokenizer_hash": self.tokenizer.hash,
            "architecture": where.architecture,
            "model_dtype": str(self.dtype).removeprefix("torch."),
            "layer": layer,
            "layers_of_model": where.layers,
            "source_site": settings.source,
            "target_site": settings.target,
            "context": settings.context,
            "packing": settings.packing,
            "attention": settings.attention,
            "bos": self.tokenizer.bos,
            "dataset": self.dataset,
            "repeat": settings.repeat,
        }

    def finished(self, folder: Path, layer: int) -> CacheReader | None:
        """The cache in ``folder`` when it is whole and just what would be harvested, else None."""
        try:
            reader = CacheReader.open(folder, expect=self.identity(layer))
        except (UsageError, MismatchError):
            return None
        held, cache = reader.manifest, self.cache
        if not all((folder / name).is_file() for name in held.files):
            return None  # a small array was damaged, and set aside
        seeds = (cache.shuffle_seed, cache.held_out_fraction, cache.split_seed)
        same = seeds == (held.shuffle_seed, held.held_out_fraction, held.split_seed)
        # Rows are the same under every codec: what was packed is finished too.
        held_geometry = replace(held.geometry, codec=self.geometry.codec)
        return reader if same and held_geometry == self.geometry else None

    def refuse_another(self, folder: Path, layer: int) -> None:
        """Raise MismatchError when ``folder`` holds the cache of something else, before a model is loaded for it."""
        if not (folder / MANIFEST).exists():
            return
        held = {key: value for key, value in read_manifest(folder).identity.items() if key != "proof"}
        difference = first_difference({"identity": self.identity(layer)}, {"identity": held})
        if difference:
            what = f"The cache here was made differently: {difference}."
            raise MismatchError(what, where=folder, remedy="Choose another folder, or --fresh to begin anew.")

    def stream(self, *, batch_contexts: int, cursor: dict[str, Any] | None) -> ContextStream:
        """This process's share of the text, from a cursor on, in batches."""
        rows = (self.geometry.part_rows("train", self.rank), self.geometry.part_rows("held_out", self.rank))
        return self._stream(self.documents, batch_contexts, rows, cursor)

    def first_contexts(self, contexts: int) -> ContextStream:
        """The text's first training contexts, the same ones for every process."""
        documents = open_documents(self.settings) if self.world > 1 else self.documents
        rows = min(contexts * self.settings.context, self.settings.train_tokens)
        return self._stream(documents, contexts, (rows, 0), None)

    def _stream(
        self, documents: Documents, batch_contexts: int, rows: tuple[int, int], cursor: dict[str, Any] | None
    ) -> ContextStream:
        settings = StreamSettings(
            context=self.settings.context,
            bos=self.tokenizer.bos,
            alone=self.settings.packing == "document",
            repeat=self.settings.repeat,
            rows=rows,
            batch_contexts=batch_contexts,
            held_out_fraction=self.cache.held_out_fraction,
            split_seed=self.cache.split_seed,
            vocabulary=self.where.vocabulary,
        )
        return ContextStream(
            documents,
            self.tokenizer.backend,
            settings=settings,
            cursor=cursor,
            first_document=self.rank,
            document_step=self.world,
        )


def make_job(
    *,
    model: str,
    layers: list[int],
    settings: HarvestSettings,
    cache_settings: CacheSettings,
    device: str,
    rank: int = 0,
    world: int = 1,
) -> Job:
    """Find the model and open the text. Raises UsageError for a model, layer, device or text that cannot be had."""
    torch_device = choose_device(device)
    where = find_model(model, revision=settings.revision)
    check_layers(layers, where)
    check_sites(where, settings)
    _check_recomputable(settings, cache_settings)
    if settings.context > where.positions:
        raise UsageError(
            f"harvest.context is {settings.context}; {where.name} has {where.positions} positions.",
            remedy=f"Set harvest.context to at most {where.positions}.",
        )
    if settings.held_out_tokens and not cache_settings.held_out_fraction:
        raise UsageError("cache.held_out_fraction is 0, so no document can fill harvest.held_out_tokens.")
    documents = open_documents(settings, rank=rank, world=world)
    return Job(
        where=where,
        tokenizer=load_tokenizer(where),
        documents=documents,
        dataset=documents.identity(),
        settings=settings,
        cache=cache_settings,
        device=torch_device,
        dtype=choose_dtype(settings.dtype, torch_device),
        rank=rank,
        world=world,
    )


def check_sites(where: ModelFolder, settings: HarvestSettings) -> None:
    """Raise UsageError when the model has not got a site that is asked for."""
    for site in settings.sites:
        if site not in where.family.ends:
            raise UsageError(
                f"{where.name} adds attention and MLP to the residual stream at once, so it has no {site}.",
                where=where.folder,
                remedy=f"Choose harvest.source and harvest.target among {', '.join(where.family.ends)}.",
            )


def _check_recomputable(settings: HarvestSettings, cache_settings: CacheSettings) -> None:
    if cache_settings.target == "recompute" and settings.sites != ("mlp_in", "mlp_out"):
        raise UsageError(
            f"{settings.target} cannot be recomputed from {settings.source}: what an MLP makes of mlp_in is mlp_out.",
            remedy="Set cache.target to stored, or harvest.source to mlp_in and harvest.target to mlp_out.",
        )
