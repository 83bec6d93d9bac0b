"""Before the first row of a harvest: the disk looked at, the weights hashed, the model loaded and its loss measured."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from cache.format.manifest import MANIFEST
from common import disk
from common.processes import locks
from common.progress import Progress
from harvest.model.language_model import LanguageModel, load_found
from harvest.model.own_loss import READ_CONTEXTS, measure_own_loss
from harvest.model.placement import has_room_for_all
from harvest.prepare import PreparedHarvest
from harvest.request import HarvestRequest


def check_promises(request: HarvestRequest, layers: Sequence[int]) -> None:
    """Raise DiskError now, and not after the model was loaded, where a file system cannot do what a cache needs."""
    if request.cache.weak_disk:
        disk.accept_weak_disk(True)
    for layer in layers:
        locks.check_promises(request.folders[layer])


def hash_weights(prepared: PreparedHarvest, progress: Progress) -> None:
    """Hash the model's weights, by which caches know it, while the library that proves its sites is imported.

    Hashing reads gigabytes and needs no lock of Python's, importing computes for a second and holds it. Where there are
    caches already, they may be finished, and then nothing is proved: there the weights are hashed alone, when asked.
    """
    if any((folder / MANIFEST).exists() for folder in prepared.request.folders.values()):
        return
    progress.note(f"hashing the weights of {prepared.source.name}")
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as background:
        hashed = background.submit(lambda: prepared.source.weights_hash)
        import_module("transformer_lens.model_bridge")
        hashed.result()


def load_and_measure(
    prepared: PreparedHarvest, last_layer: int, progress: Progress
) -> tuple[LanguageModel, dict[str, float | int] | None]:
    """The model up to ``last_layer``, and the loss that all of it has on the text, where all of it fits."""
    request = prepared.request
    source = prepared.source
    whole = has_room_for_all(source, prepared.dtype, device=request.device, processes=request.world)
    progress.note(f"loading {source.name} onto {prepared.device}")
    model = load_found(
        source,
        device=request.device,
        dtype=request.settings.dtype,
        last_layer=last_layer,
        whole=whole,
        tokenizer=prepared.tokenizer,
    )
    for note in (*prepared.tokenizer.notes, *model.notes):
        progress.note(note)
    if not whole:
        progress.note("there is no room for all of the model, so its own loss on this text is not measured")
        return model, None
    settings = request.settings
    batch = next(iter(prepared.first_contexts(READ_CONTEXTS)))
    own_loss = measure_own_loss(
        model,
        batch,
        planned_contexts=(settings.train_tokens + settings.held_out_tokens) // settings.context,
        within_documents=settings.attention == "document",
    )
    for line in own_loss.lines():
        progress.note(line)
    model.cut(last_layer)
    return model, own_loss.as_dict()
