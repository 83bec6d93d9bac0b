"""A harvest request after its model was found and its text opened. No weights are loaded, and nothing is written."""

import posixpath
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cache.format.codec import minimum_bytes
from cache.format.layout import Geometry
from cache.format.manifest import MANIFEST, first_difference, make_geometry, read_manifest
from cache.reader import CacheReader
from common.device import choose_device
from common.errors import MismatchError, NestcoderError, UsageError
from common.progress import Progress
from harvest.config import HarvestSettings
from harvest.model.language_model import choose_dtype
from harvest.model.source import ModelSource, check_layers, find_model
from harvest.model.tokenizer import ModelTokenizer, load_tokenizer
from harvest.request import HarvestRequest
from harvest.text.documents import Documents, open_documents
from harvest.text.rows import TextAccess
from harvest.text.tokens import ContextStream, StreamSettings


@dataclass(frozen=True)
class PreparedHarvest:
    """The request, and what it refers to: the model, its tokenizer, the text, the device and dtype."""

    request: HarvestRequest
    source: ModelSource
    tokenizer: ModelTokenizer
    documents: Documents
    access: TextAccess
    dataset: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    @property
    def settings(self) -> HarvestSettings:
        """The settings of the harvest."""
        return self.request.settings

    @property
    def geometry(self) -> Geometry:
        """The layout of the rows on disk, the same for every layer."""
        return make_geometry(
            self.request.cache,
            d_source=self.source.width,
            d_target=self.source.width,
            train_rows=self.settings.train_tokens,
            held_out_rows=self.settings.held_out_tokens,
            partitions=self.request.world,
        )

    @property
    def minimum_bytes(self) -> int:
        """The smallest size of a layer's cache, with the best compression of its codec."""
        return minimum_bytes(self.geometry.size_bytes, self.geometry.codec, self.geometry.dtype)

    def identity(self, layer: int) -> dict[str, Any]:
        """Everything that determines the cache's bytes, except device and batch, which only change the rounding."""
        source = self.source
        settings = self.settings
        return {
            "model": self._name_in(layer) or posixpath.normpath(source.name),
            "model_revision": source.revision,
            "model_parameters": source.parameters,
            "weights_hash": source.weights_hash,
            "tokenizer_hash": self.tokenizer.hash,
            "architecture": source.architecture,
            "model_dtype": str(self.dtype).removeprefix("torch."),
            "layer": layer,
            "layers_of_model": source.layers,
            "source_site": settings.source,
            "target_site": settings.target,
            "context": settings.context,
            "packing": settings.packing,
            "attention": settings.attention,
            "bos": self.tokenizer.bos if self.tokenizer.begins_with_bos else None,
            "dataset": self.dataset,
            "repeat": settings.repeat,
            **self._unusual_settings(),
        }

    def _name_in(self, layer: int) -> str | None:
        """The model's name in the layer's cache if that has the same weights: a relative and an absolute path are one
        model."""
        folder = self.request.folders[layer]
        if self.source.revision is not None or not (folder / MANIFEST).is_file():
            return None
        try:
            identity = read_manifest(folder).identity
        except NestcoderError:
            return None
        same = identity.get("weights_hash") == self.source.weights_hash and identity.get("model_revision") is None
        return str(identity["model"]) if same else None

    def _unusual_settings(self) -> dict[str, Any]:
        """Settings that were added later: they enter the identity only if they differ from what caches had before."""
        settings = self.settings
        unusual: dict[str, Any] = {}
        if settings.special_tokens_in_text != "text":
            unusual["special_tokens_in_text"] = settings.special_tokens_in_text
        if settings.held_out_document_tokens is not None:
            unusual["held_out_document_tokens"] = settings.held_out_document_tokens
        return unusual

    def finished(self, layer: int) -> CacheReader | None:
        """The layer's cache if it is complete and is what would be harvested, else None."""
        folder = self.request.folders[layer]
        try:
            reader = CacheReader.open(folder, expect=self.identity(layer))
        except (UsageError, MismatchError):
            return None
        manifest = reader.manifest
        if not all((folder / name).is_file() for name in manifest.files):
            return None  # a small array was damaged, and a repair moved it away
        cache = self.request.cache
        wanted_seeds = (cache.shuffle_seed, cache.held_out_fraction, cache.split_seed)
        seeds = (manifest.shuffle_seed, manifest.held_out_fraction, manifest.split_seed)
        # The rows of a finished cache are the same with every codec and every number of writing processes.
        geometry = replace(manifest.geometry, codec=self.geometry.codec, partitions=self.geometry.partitions)
        return reader if seeds == wanted_seeds and geometry == self.geometry else None

    def refuse_another(self, layer: int) -> None:
        """Raise MismatchError when the layer's folder has another cache, before a model is loaded for it."""
        folder = self.request.folders[layer]
        if not (folder / MANIFEST).exists():
            return
        manifest = read_manifest(folder)
        existing = {
            "identity": {key: value for key, value in manifest.identity.items() if key != "proof"},
            "format": asdict(manifest.geometry) | {"codec": self.geometry.codec},
        }
        difference = first_difference({"identity": self.identity(layer), "format": asdict(self.geometry)}, existing)
        if difference:
            what = f"The cache here was made with other settings: {difference}."
            raise MismatchError(what, where=folder, remedy=_remedy_for(difference.split(" is ")[0], existing))

    def stream(self, *, batch_contexts: int, cursor: dict[str, Any] | None) -> ContextStream:
        """This process's share of the text, from a cursor on, in batches."""
        rank = self.request.rank
        rows = (self.geometry.partition_rows("train", rank), self.geometry.partition_rows("held_out", rank))
        return self._stream(self.documents, batch_contexts, rows, cursor)

    def first_contexts(self, contexts: int) -> ContextStream:
        """The text's first training contexts, the same ones for every process."""
        documents = self.documents
        if self.request.world > 1:
            documents = open_documents(self.settings, replace(self.access, rank=0, world=1))
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
            held_out_fraction=self.request.cache.held_out_fraction,
            split_seed=self.request.cache.split_seed,
            vocabulary=self.source.vocabulary,
            begins_with_bos=self.tokenizer.begins_with_bos,
            held_out_document_tokens=self.settings.held_out_document_tokens,
        )
        return ContextStream(
            documents,
            self.tokenizer.backend,
            settings=settings,
            cursor=cursor,
            first_document=self.request.rank,
            document_step=self.request.world,
        )


def prepare(request: HarvestRequest, progress: Progress | None = None) -> PreparedHarvest:
    """Find the model and open the text. Raises UsageError for a model, layer, device or text that cannot be used."""
    device = choose_device(request.device)
    settings = request.settings
    source = find_model(request.model, revision=settings.revision)
    check_layers(request.layers, source)
    check_sites(source, settings)
    _check_recomputable(request)
    if settings.context > source.positions:
        raise UsageError(
            f"harvest.context is {settings.context}, but {source.name} has only {source.positions} positions.",
            remedy=f"Set harvest.context to at most {source.positions}.",
        )
    if settings.held_out_tokens and not request.cache.held_out_fraction:
        raise UsageError(
            "cache.held_out_fraction is 0, so there are no documents for harvest.held_out_tokens.",
            remedy="Set cache.held_out_fraction to a share such as 0.05.",
        )
    tokenizer = load_tokenizer(source, bos=settings.bos, plain_text=settings.special_tokens_in_text == "text")
    access = TextAccess(
        vocabulary=source.vocabulary,
        render=tokenizer.render_chat,
        note=progress.note if progress else lambda _: None,
        rank=request.rank,
        world=request.world,
    )
    if settings.messages_column and not tokenizer.has_chat_template:
        raise UsageError(
            "harvest.messages_column is given, but the tokenizer has no chat template.",
            where=source.folder,
            remedy="Give text or token ids, or a model whose tokenizer_config.json has a chat template.",
        )
    documents = open_documents(settings, access)
    return PreparedHarvest(
        request=request,
        source=source,
        tokenizer=tokenizer,
        documents=documents,
        access=access,
        dataset=documents.identity(),
        device=device,
        dtype=choose_dtype(settings.dtype, device),
    )


_SETTINGS = {
    "identity.context": "harvest.context",
    "identity.packing": "harvest.packing",
    "identity.attention": "harvest.attention",
    "identity.repeat": "harvest.repeat",
    "identity.source_site": "harvest.source",
    "identity.target_site": "harvest.target",
    "identity.model_dtype": "harvest.dtype",
    "identity.held_out_document_tokens": "harvest.held_out_document_tokens",
    "identity.special_tokens_in_text": "harvest.special_tokens_in_text",
    "identity.dataset.split": "harvest.dataset_split",
    "identity.dataset.config": "harvest.dataset_config",
    "identity.dataset.revision": "harvest.dataset_revision",
    "identity.dataset.bad_rows": "harvest.bad_rows",
    "identity.model_revision": "harvest.revision",
    "format.train_rows": "harvest.train_tokens",
    "format.held_out_rows": "harvest.held_out_tokens",
    "format.dtype": "cache.dtype",
    "format.target": "cache.target",
    "format.shard_rows": "cache.shard_rows",
    "format.segment_rows": "cache.segment_rows",
    "format.chunk_rows": "cache.chunk_rows",
}
"""The setting that determines a field of the manifest."""


def _remedy_for(field: str, existing: dict[str, Any]) -> str:
    """How to go on with the existing cache, if a setting can do that; then what costs more work."""
    value: Any = existing
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    alternative = "Another folder (--set runs=...) keeps both caches; --fresh replaces the old one."
    if field == "format.partitions":
        return f"Run it with {value} processes to go on with it. {alternative}"
    if field in _SETTINGS and value is not None:
        return f"Set {_SETTINGS[field]} to {value} to go on with it. {alternative}"
    if field.startswith("identity.dataset"):
        return f"Give the text with which it was begun to go on with it. {alternative}"
    return alternative


def check_sites(source: ModelSource, settings: HarvestSettings) -> None:
    """Raise UsageError when the model does not have a site of the settings."""
    for site in settings.sites:
        if site not in source.family.ends:
            raise UsageError(
                f"{source.name} adds attention and MLP to the residual stream in one step, so it has no {site}.",
                where=source.folder,
                remedy=f"Choose harvest.source and harvest.target among {', '.join(source.family.ends)}.",
            )


def _check_recomputable(request: HarvestRequest) -> None:
    settings = request.settings
    if request.cache.target == "recompute" and settings.sites != ("mlp_in", "mlp_out"):
        raise UsageError(
            f"{settings.target} cannot be recomputed from {settings.source}: an MLP computes mlp_out from mlp_in.",
            remedy="Set cache.target to stored, or harvest.source to mlp_in and harvest.target to mlp_out.",
        )
