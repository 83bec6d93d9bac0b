"""Transcoders of one layer each, or autoencoders, fine-tuned together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.run_layout import CONFIG_FILE
from evaluate.absorption.first_letter import FirstLetterAbsorption, absorption_scorer
from evaluate.measure import measure
from evaluate.metrics.fvu import Fvu
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.sparsity import Sparsity
from evaluate.metrics.top_contexts import TopContexts
from evaluate.reference import check_belongs
from evaluate.spliced.all_layers import check_same_text
from finetune.compare import LayerMeasures, strongest_tokens
from finetune.in_model import InModel, SetInModel
from finetune.subject import Subject
from finetune.tuned import Tuned, factors_of_layer, kept_of_config
from transcoder.formats.native import load_transcoder, save_transcoder

_METRICS = (Fvu, Sparsity, TopContexts, FirstLetterAbsorption)


class LayerSet(Subject):
    """A dictionary of its own for every layer."""

    before: SetInModel

    def _load(self, folders: Mapping[int, Path]) -> SetInModel:
        for folder in folders.values():
            if not (folder / CONFIG_FILE).is_file():
                raise UsageError("There is no trained transcoder here.", where=folder, remedy="Train this layer first.")
        return SetInModel(
            {
                layer: load_transcoder(folder, progress=self.progress).on(self.device)
                for layer, folder in folders.items()
            }
        )

    def _check(self) -> None:
        check_same_text(self.readers)
        for layer, folder in self.request.trained().items():
            check_belongs(self.before.pieces[layer], self.readers[layer], path=folder, force=False)

    def _begin(self, layer: int) -> Tuned:
        piece = self.before.pieces[layer]
        return Tuned.begin(piece, factors_of_layer(piece, self.readers[layer]))

    def _of_tuned(self) -> SetInModel:
        return SetInModel({layer: tuned.transcoder for layer, tuned in self.tuned.items()})

    def weights(self) -> dict[str, Any]:
        return {str(layer): piece.config.get("weights") for layer, piece in self.before.pieces.items()}

    def save(self, facts: Mapping[str, Any]) -> None:
        for layer, folder in self.request.results().items():
            config = kept_of_config(self.before.pieces[layer].config)
            save_transcoder(self.tuned[layer].transcoder, folder, config={**config, **facts})

    def measured(self, dictionaries: InModel) -> dict[int, LayerMeasures]:
        return {layer: self._measured(dictionaries, layer) for layer in dictionaries.pieces}

    def _measured(self, dictionaries: InModel, layer: int) -> LayerMeasures:
        dictionary = dictionaries.pieces[layer]
        reader = self.readers[layer]
        replay = self._replay(layer, dictionary)
        scorer = absorption_scorer(reader, self.request.folders[layer].probe(), column=dictionary.column)
        inputs = MetricInputs(dictionary, replay.held_out, reader, self.request.evaluate, self.device, scorer)
        found = measure(replay, inputs, _METRICS)
        metrics = found.metrics
        absorption = metrics["absorption_first_letter"]
        fields = {
            "prefixes": metrics["prefixes"],
            "fvu_per_prefix": metrics["fvu_per_prefix"],
            "l0_per_prefix": metrics["l0_per_prefix"],
            "dead_fraction_per_prefix": metrics["dead_fraction_per_prefix"],
            "absorption_first_letter": absorption["score"],
            "absorption_reason": absorption.get("reason"),
        }
        return fields, strongest_tokens(found.states["TopContexts"], replay.held_out)
