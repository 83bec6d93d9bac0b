"""A cross-layer transcoder, fine-tuned as one: every layer's features, with all that they write."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from cache.stacked import stacked
from common.errors import UsageError
from common.run_layout import CONFIG_FILE
from evaluate.joint.absorption import JointAbsorption
from evaluate.joint.opened import check_caches
from evaluate.joint.rows import JointRows
from evaluate.joint.stand_in import NOT_CAUSAL
from evaluate.measure import measure
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.sparsity import Sparsity
from evaluate.metrics.top_contexts import TopContexts
from evaluate.spliced.all_layers import check_same_text
from finetune.compare import LayerMeasures, strongest_tokens
from finetune.in_model import CrossLayerInModel, InModel
from finetune.subject import Subject
from finetune.tuned import Tuned, factors_of_piece, kept_of_config
from transcoder.formats.cross_layer import load_cross_layer, save_cross_layer
from transcoder.transcoder import Transcoder

_METRICS = (Sparsity, TopContexts)


class CrossLayerSubject(Subject):
    """One dictionary of all layers."""

    before: CrossLayerInModel

    def _load(self, folders: Mapping[int, Path]) -> CrossLayerInModel:
        (folder,) = set(folders.values())
        if not (folder / CONFIG_FILE).is_file():
            what = "There is no trained cross-layer transcoder here."
            raise UsageError(what, where=folder, remedy="Train it first, with train.kind: cross-layer.")
        dictionary = load_cross_layer(folder)
        if dictionary.over_layers:
            remedy = "Train one with train.select_over: layer."
            raise UsageError(f"{NOT_CAUSAL.format(name=dictionary.name)}.", where=folder, remedy=remedy)
        return CrossLayerInModel(dictionary.on(self.device))

    def _check(self) -> None:
        check_same_text(self.readers)
        path = next(iter(self.request.trained().values()))
        check_caches(self.before.dictionary, self._stacked_reader, path=path)

    def _begin(self, layer: int) -> Tuned:
        dictionary = self.before.dictionary
        number = dictionary.layers.index(layer)
        readers = [self.readers[layer] for layer in dictionary.layers]
        return Tuned.begin(dictionary.piece(number), factors_of_piece(dictionary, number, readers))

    def _of_tuned(self) -> CrossLayerInModel:
        pieces = [self.tuned[layer].transcoder for layer in self.before.dictionary.layers]
        return CrossLayerInModel(self.before.dictionary.with_pieces(pieces))

    def weights(self) -> dict[str, Any]:
        return {"all": self.before.dictionary.config.get("weights")}

    def save(self, facts: Mapping[str, Any]) -> None:
        folder = next(iter(self.request.results().values()))
        config = kept_of_config(self.before.dictionary.config)
        save_cross_layer(self._of_tuned().dictionary, folder, config={**config, **facts})

    def measured(self, dictionaries: InModel) -> dict[int, LayerMeasures]:
        assert isinstance(dictionaries, CrossLayerInModel), "what is tuned here is one cross-layer transcoder"
        ordered = [self.readers[layer] for layer in dictionaries.dictionary.layers]
        settings = self.request.evaluate
        rows = JointRows(self._stacked_reader, ordered, settings, device=self.device, progress=self.progress)
        fvu = rows.measure(dictionaries.dictionary)["fvu_per_layer_and_prefix"]
        absorption = self._absorption.scores(dictionaries.dictionary)
        return {
            layer: self._measured(dictionaries.dictionary.within(number), layer, fvu[number], absorption[number])
            for number, layer in enumerate(dictionaries.dictionary.layers)
        }

    def _measured(
        self, piece: Transcoder, layer: int, fvu_per_prefix: list[float], absorption: Mapping[str, Any]
    ) -> LayerMeasures:
        """What fires is the matter of a layer's encoder; its FVU that of all that write to it."""
        replay = self._replay(layer, piece)
        reader = self.readers[layer]
        settings = self.request.evaluate
        inputs = MetricInputs(piece, replay.held_out, reader, settings, self.device, lambda _: dict(absorption))
        found = measure(replay, inputs, _METRICS)
        fields = {
            "prefixes": list(piece.prefixes),
            "fvu_per_prefix": fvu_per_prefix,
            "l0_per_prefix": found.metrics["l0_per_prefix"],
            "dead_fraction_per_prefix": found.metrics["dead_fraction_per_prefix"],
            "absorption_first_letter": absorption["score"],
            "absorption_reason": absorption["reason"],
        }
        return fields, strongest_tokens(found.states["TopContexts"], replay.held_out)

    @cached_property
    def _stacked_reader(self) -> Any:
        return stacked([self.readers[layer] for layer in sorted(self.readers)])

    @cached_property
    def _absorption(self) -> JointAbsorption:
        folders = {layer: own.probe() for layer, own in self.request.folders.items()}
        return JointAbsorption(self.readers, folders)
