"""The kinds of dictionaries by the names that ``train.kind`` has."""

from train.context import TrainingContext
from train.kinds.cross_layer import CrossLayer
from train.kinds.kind import Kind
from train.kinds.single import Single
from train.resolved import ResolvedSettings

KINDS: dict[str, type[Kind]] = {"transcoder": Single, "sae": Single, "cross-layer": CrossLayer}


def kind_of(settings: ResolvedSettings, context: TrainingContext) -> Kind:
    """The kind that a run trains."""
    return KINDS[settings.kind](settings, context)
