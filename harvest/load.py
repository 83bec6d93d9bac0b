"""Before the first row of a harvest: checks the disk, hashes the weights, loads the model and measures its loss."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from cache.format.manifest import MANIFEST
from common import disk
from common.device import wake
from common.processes import locks
from common.processes.garbage import no_collections
from common.progress import Progress, Stopwatch
from harvest.model.language_model import LanguageModel, load_found
from harvest.model.own_loss import READ_CONTEXTS, measure_own_loss
from harvest.model.placement import has_room_for_all
from harvest.prepare import PreparedHarvest
from harvest.request import HarvestRequest
from harvest.threads import Later


def check_file_systems(request: HarvestRequest, layers: Sequence[int]) -> None:
    """Raise DiskError, before the model is loaded, if a file system lacks something that a cache needs."""
    if request.cache.weak_disk:
        disk.accept_weak_disk(True)
    for layer in layers:
        locks.check_file_system(request.folders[layer])


def hash_weights(prepared: PreparedHarvest, progress: Progress) -> None:
    """Hash the model's weights, which identify it, while a GPU starts and the proof's library is imported.

    Hashing reads gigabytes without the GIL; importing computes for seconds with it. If there are caches already, they
    may be finished, and then nothing is proved: so the library is not imported, and the weights are hashed when needed.
    """
    if any((folder / MANIFEST).exists() for folder in prepared.request.folders.values()):
        return
    progress.note(f"Hashing the weights of {prepared.source.name}.")
    with ThreadPoolExecutor(2, thread_name_prefix="hash") as background, no_collections():
        hashed = background.submit(lambda: prepared.source.weights_hash)
        # Whatever it raises is raised again where the device is needed.
        background.submit(wake, prepared.device, prepared.dtype)
        import_module("transformer_lens.model_bridge")
        hashed.result()


def load_and_measure(
    prepared: PreparedHarvest, last_layer: int, progress: Progress, watch: Stopwatch
) -> tuple[LanguageModel, dict[str, float | int] | None]:
    """The model up to ``last_layer``, and the loss of the complete model on the text if the complete model fits."""
    request = prepared.request
    source = prepared.source
    all_blocks = has_room_for_all(source, prepared.dtype, device=request.device, processes=request.world)
    progress.note(f"Loading {source.name} onto {prepared.device}.")
    # Loading waits for the disk and a GPU, tokenising for neither.
    text = Later(lambda: next(iter(prepared.first_contexts(READ_CONTEXTS)))) if all_blocks else None
    with watch.timing("loading"):
        model = load_found(
            source,
            device=request.device,
            dtype=request.settings.dtype,
            last_layer=last_layer,
            all_blocks=all_blocks,
            tokenizer=prepared.tokenizer,
        )
    for note in (*prepared.tokenizer.notes, *model.notes):
        progress.note(note)
    if text is None:
        progress.note("There is no room for the complete model, so its own loss on this text is not measured.")
        return model, None
    settings = request.settings
    with watch.timing("measuring its own loss"):
        own_loss = measure_own_loss(
            model,
            text.result(),
            planned_contexts=(settings.train_tokens + settings.held_out_tokens) // settings.context,
            within_documents=settings.attention == "document",
        )
    for line in own_loss.lines():
        progress.note(line)
    model.cut(last_layer)
    return model, own_loss.as_dict()
