"""First-letter absorption of a dictionary, prefix by prefix, and what the scores rest on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from evaluate.absorption.letters import LetterProbes, Readability, source_spread
from evaluate.absorption.probe_set import ProbeSet
from evaluate.absorption.score import score_prefix
from transcoder.sparse_code import SparseCode, stacked
from transcoder.transcoder import Transcoder

ENCODED_WORDS = 1024
"""At a time, so that memory does not grow with words x dict_size."""

LARGE_MODEL_PARAMETERS = 1_000_000_000
"""Below this the result is called exploratory: the definition was made on larger models."""
LARGE_DICTIONARY = 16_384
"""Below this too."""


@dataclass(frozen=True)
class Carriers:
    """Features that may carry letters: their code on the words, and the direction of each, as ``score_prefix`` has
    them. A prefix has the first ``ends`` of them."""

    code: SparseCode
    directions: Float[Tensor, "features width"]
    ends: tuple[int, ...]


def measure_absorption(dictionary: Transcoder, words: ProbeSet, readable: Readability) -> dict[str, Any]:
    """The scores of every prefix of ``dictionary``, whose ``source_view`` the source of ``words`` must be in.

    ``score`` is the mean absorption fraction of the whole dictionary; null with a ``reason`` where letters cannot be
    read, or where its features do not carry enough of them.
    """
    carriers = None
    if readable.probes is not None:
        directions = directions_of(dictionary, words, readable.probes)
        carriers = Carriers(code_of_words(dictionary, words), directions, dictionary.prefixes)
    return absorption_of(carriers, words, readable, prefixes=dictionary.prefixes, features=dictionary.dict_size)


def code_of_words(dictionary: Transcoder, words: ProbeSet) -> SparseCode:
    """What fires on every word."""
    return stacked([dictionary.sparse_code(rows) for rows in words.source.split(ENCODED_WORDS)])


def directions_of(dictionary: Transcoder, words: ProbeSet, probes: LetterProbes) -> Float[Tensor, "dict_size width"]:
    """Of every feature, what ``probes`` of its space are compared with."""
    return dictionary.W_dec if probes.space == "target" else dictionary.W_enc * source_spread(words)


def absorption_of(
    carriers: Carriers | None, words: ProbeSet, readable: Readability, *, prefixes: Sequence[int], features: int
) -> dict[str, Any]:
    """The fields of ``measure_absorption`` from the features that are scored; None where letters cannot be read."""
    fields = _describe(words, readable, features=features)
    if carriers is None or readable.probes is None:
        empty = {"score": None, "full_absorption_rate": None, "reason": readable.reason}
        return fields | empty | {"per_prefix": [{"prefix": prefix, **empty} for prefix in prefixes]}
    per_prefix = [
        score_prefix(carriers.code, words, readable.probes, carriers.directions[:end]) | {"prefix": prefix}
        for prefix, end in zip(prefixes, carriers.ends, strict=True)
    ]
    names = ("score", "full_absorption_rate", "reason")
    return fields | {name: per_prefix[-1][name] for name in names} | {"per_prefix": per_prefix}


def _describe(words: ProbeSet, readable: Readability, *, features: int) -> dict[str, Any]:
    """What the score rests on, and why it is exploratory where it is."""
    parameters = words.about.get("model_parameters")
    probes = readable.best
    doubts: list[str] = []
    if isinstance(parameters, int) and parameters < LARGE_MODEL_PARAMETERS:
        doubts.append("the model has under 1 B parameters")
    if features < LARGE_DICTIONARY:
        doubts.append("the dictionary has under 16,384 features")
    return {
        "kind": "first-letter",
        "space": readable.probes.space if readable.probes else None,
        "space_reason": readable.reason,
        "exploratory": " and ".join(doubts) or None,
        "letters_counted": len(probes.counted),
        "letters_on_target": len(readable.target.counted),
        "letters_on_source": len(readable.source.counted) if readable.source else None,
        "probe_f1": float(probes.f1.mean()),
        "probe_f1_per_letter": {chr(97 + letter): round(float(f1), 4) for letter, f1 in enumerate(probes.f1)},
        "words_train": int((~words.test).sum()),
        "words_test": int(words.test.sum()),
        "words_right": int(probes.right.sum()),
    }
