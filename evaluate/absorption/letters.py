"""Linear probes of the first letter, and the space in which absorption is scored.

A letter can be scored where a linear probe reads it. A transcoder has two spaces: the source, which its encoder reads,
and the target, which its decoder writes. The target is used where at least 20 letters can be read off it, as in
the definition's own paper; else the source, where they can be read there. What an MLP reads tells the letter of a word
far more often than what it adds: of SmolLM2's layer 8, probes read 25 letters off the source and 2 off the target.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluate.absorption.logistic import Probes, f1_scores, fit_dense, label_matrix
from evaluate.absorption.probe_set import LETTERS, ProbeSet

MIN_PROBE_F1 = 0.6
"""A letter's probe must do better on test words."""
MIN_LETTERS = 20
"""So many of the 26 letters must have such a probe."""

_MIN_SPREAD = 1e-3
"""Share of the mean: a dimension that never varies must not be divided by 0."""

Space = Literal["target", "source"]


@dataclass(frozen=True)
class LetterProbes:
    """Shared by every dictionary and prefix. ``f1`` is taken on test words; ``right`` marks the words it scores on."""

    direction: Float[Tensor, "width letters"]
    f1: Float[Tensor, " letters"]
    right: Bool[Tensor, "words letters"]
    space: Space = "target"

    @property
    def counted(self) -> list[int]:
        """The letters whose probe is good enough and gets at least one word right."""
        usable = (self.f1 > MIN_PROBE_F1) & self.right.any(0)
        return usable.nonzero().flatten().tolist()


@dataclass(frozen=True)
class Readability:
    """In which space letters are scored (None: in neither) and why. ``source`` is None where it was not needed."""

    target: LetterProbes
    source: LetterProbes | None

    @property
    def probes(self) -> LetterProbes | None:
        """Those of the space that is used."""
        for probes in (self.target, self.source):
            if probes is not None and len(probes.counted) >= MIN_LETTERS:
                return probes
        return None

    @property
    def best(self) -> LetterProbes:
        """Those of the space that is used, or else of the one that came nearest."""
        found = [probes for probes in (self.target, self.source) if probes is not None]
        return self.probes or max(found, key=lambda probes: len(probes.counted))

    @property
    def reason(self) -> str:
        """Why this space, or why none."""
        target = len(self.target.counted)
        if self.source is None:
            return f"{target} of {LETTERS} letters can be read off the target"
        source = len(self.source.counted)
        if self.probes is not None:
            return f"{source} of {LETTERS} letters can be read off the source, {target} off the target"
        return (
            f"{target} of {LETTERS} letters have a probe with F1 > {MIN_PROBE_F1} on the target and {source} on the "
            f"source, and {MIN_LETTERS} are needed: first letters cannot be read off this layer well enough"
        )


def fit_letter_probes(words: ProbeSet, space: Space = "target") -> LetterProbes:
    """One logistic probe a letter on the activations of the training words in ``space``."""
    activations = words.target if space == "target" else words.source / source_spread(words)
    labels = label_matrix(words.letter, LETTERS)
    probes: Probes = fit_dense(activations[~words.test], labels[~words.test])
    predicted = probes.logits(activations) > 0
    return LetterProbes(
        direction=torch.nn.functional.normalize(probes.weight, dim=0),
        f1=f1_scores(predicted[words.test], labels[words.test]),
        right=predicted & labels & words.test[:, None],
        space=space,
    )


def source_spread(words: ProbeSet) -> Float[Tensor, " d_source"]:
    """Each dimension's standard deviation over the training words: the unit in which the source is read."""
    spread = words.source[~words.test].std(dim=0)
    return spread.clamp_min(_MIN_SPREAD * float(spread.mean()) or 1.0)


def readability(words: ProbeSet) -> Readability:
    """Probes on the target, and on the source if too few letters can be read off the target."""
    target = fit_letter_probes(words, "target")
    if len(target.counted) >= MIN_LETTERS:
        return Readability(target, None)
    return Readability(target, fit_letter_probes(words, "source"))
