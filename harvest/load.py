"""Loading the model for a harvest, with its own loss on the text."""

from common.progress import Progress
from harvest.model.language_model import LanguageModel, load_found
from harvest.model.own_loss import READ_CONTEXTS, measure_own_loss
from harvest.model.placement import has_room_for_all
from harvest.prepare import PreparedHarvest


def load_and_measure(
    prepared: PreparedHarvest, last_layer: int, progress: Progress
) -> tuple[LanguageModel, dict[str, float | int] | None]:
    """The model up to ``last_layer``, and the loss that all of it has on the text, where all of it fits."""
    request = prepared.request
    source = prepared.source
    whole = has_room_for_all(source, prepared.dtype, device=request.device, processes=request.world)
    progress.note(f"loading {source.name} onto {prepared.device}")
    model = load_found(source, device=request.device, dtype=request.settings.dtype, last_layer=last_layer, whole=whole)
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
