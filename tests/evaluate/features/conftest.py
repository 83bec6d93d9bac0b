"""Evidence of the toy cache, and its dense code: every formula is checked against the dense code by brute force."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from common.progress import Silent
from evaluate.features.code import Code, CodeBlock, join
from evaluate.features.collect import block_starts, encode_part, evidence_of
from evaluate.features.config import FeatureSettings
from evaluate.features.contexts import Text
from evaluate.features.evidence import Evidence
from evaluate.features.firings import Firings, by_feature
from evaluate.reference import of_transcoder
from transcoder.dictionary import Dictionary
from transcoder.transcoder import Transcoder, load_transcoder

SPECIAL = 0


@dataclass
class Toy:
    """``dense`` is the code of every row, its special rows zero; ``kept`` the other rows."""

    reader: CacheReader
    trained: Transcoder
    dictionary: Dictionary
    settings: FeatureSettings
    blocks: list[CodeBlock]
    evidence: Evidence
    dense: np.ndarray
    kept: np.ndarray
    source: torch.Tensor
    target: torch.Tensor

    @property
    def code(self) -> Code:
        return join(self.blocks)

    @property
    def firings(self) -> Firings:
        return by_feature(self.code, self.dictionary.dict_size)

    @property
    def text(self) -> Text:
        return self.evidence.text


@pytest.fixture(scope="session")
def toy(toy_cache: Path, toy_transcoder: Path) -> Toy:
    reader, trained = CacheReader.open(toy_cache), load_transcoder(toy_transcoder)
    dictionary = of_transcoder(trained, name="toy")
    settings = FeatureSettings(
        block_rows=256, context_tokens=3, top_contexts=4, interval_contexts=2, uniform_contexts=3, silent_contexts=2
    )
    blocks = encode_part(reader, dictionary, settings, block_starts(reader, settings), progress=Silent())
    view = reader.split("held_out")
    rows = view.rows(slice(0, len(view)))
    kept = np.flatnonzero(rows.tokens != SPECIAL)
    dense = trained.encode(rows.source.float()).numpy()
    dense[rows.tokens == SPECIAL] = 0
    return Toy(
        reader=reader,
        trained=trained,
        dictionary=dictionary,
        settings=settings,
        blocks=blocks,
        evidence=evidence_of(blocks, reader, dictionary, settings, origin=trained.config),
        dense=dense,
        kept=kept,
        source=rows.source.float(),
        target=rows.target.float(),
    )
