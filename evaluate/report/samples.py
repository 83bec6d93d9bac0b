"""What a feature means: a few features with the held-out text around their strongest activations, for a terminal.

The features are chosen without looking at them: in each prefix group, evenly over how often they fire, among those that
fire in enough documents. Tokens are decoded by the tokenizer that the harvest stored with the cache.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Int

from evaluate.held_out import HeldOut
from evaluate.token_text import Speller
from transcoder.transcoder import Transcoder

BEFORE = 14
AFTER = 6
"""Tokens shown before and after the one where the feature is strongest."""


@dataclass(frozen=True)
class Context:
    """Text with a strongest activation: ``activations`` has the feature's value at each token, ``at`` is the index of
    the strongest."""

    document: int
    row: int
    at: int
    tokens: list[str]
    activations: list[float]


@dataclass(frozen=True)
class FeatureSample:
    """``prefix`` is the shortest that has the feature; ``density`` its share of held-out tokens."""

    feature: int
    prefix: int
    density: float
    contexts: list[Context]


def chosen_features(
    firings: Int[np.ndarray, " dict_size"],
    documents: Int[np.ndarray, "dict_size contexts"],
    *,
    groups: Sequence[range],
    count: int,
) -> list[int]:
    """``count`` features of each group, evenly distributed over their frequency, among those strong in enough
    documents."""
    chosen: list[int] = []
    for group in groups:
        known = np.array(group)[(documents[group.start : group.stop] >= 0).all(axis=1)]
        by_frequency = known[np.argsort(firings[known], kind="stable")]
        indices = ((np.arange(count) + 0.5) / max(1, count) * len(by_frequency)).astype(int)
        chosen += [int(by_frequency[index]) for index in np.unique(indices) if index < len(by_frequency)]
    return chosen


def sample(
    held_out: HeldOut,
    dictionary: Transcoder,
    *,
    features: Sequence[int],
    rows: Int[np.ndarray, "dict_size contexts"],
    firings: Int[np.ndarray, " dict_size"],
    spell: Speller,
) -> list[FeatureSample]:
    """Read back the text around each feature's strongest rows. ``firings`` are over all unmasked held-out rows."""
    return [
        FeatureSample(
            feature=feature,
            prefix=next(prefix for prefix in dictionary.prefixes if feature < prefix),
            density=float(firings[feature] / held_out.counted),
            contexts=[_context(held_out, dictionary, feature, row=int(row), spell=spell) for row in rows[feature]],
        )
        for feature in features
    ]


def _context(held_out: HeldOut, dictionary: Transcoder, feature: int, *, row: int, spell: Speller) -> Context:
    document = held_out.view.document
    position = held_out.view.position
    start = row
    while start > 0 and row - start < BEFORE and position[start - 1] == position[start] - 1:
        start -= 1
    end = row + 1
    while end < len(document) and end - row <= AFTER and position[end] == position[end - 1] + 1:
        end += 1
    rows = held_out.view.rows(slice(start, end), view=dictionary.source_view)
    selection = dictionary.sparse_code(rows.source.float().to(dictionary.W_enc.device))
    of_feature = selection.features == feature
    activations = torch.zeros(end - start).index_put_(
        (selection.rows()[of_feature].long().cpu(),), selection.values[of_feature].cpu()
    )
    return Context(
        document=int(document[row]),
        row=row,
        at=row - start,
        tokens=[spell(int(token)) for token in rows.tokens],
        activations=[round(float(value), 4) for value in activations],
    )


def as_text(samples: Sequence[FeatureSample]) -> str:
    """A paragraph a feature, a line a context; the strongest token in ⟦ ⟧, other tokens that it fires on in ‹ ›."""
    return "\n\n".join("\n".join([_heading(sample), *map(_line, sample.contexts)]) for sample in samples) + "\n"


def _heading(sample: FeatureSample) -> str:
    return f"feature {sample.feature}  (prefix {sample.prefix:,}; fires on {sample.density:.2%} of tokens)"


def _line(context: Context) -> str:
    shown = [_marked(context, index) for index in range(len(context.tokens))]
    return f"  {context.activations[context.at]:8.3f}  {''.join(shown)}"


def _marked(context: Context, index: int) -> str:
    text = context.tokens[index].replace("\n", "⏎").replace("\t", "⇥").replace("\r", "")
    printable = "".join(letter if letter.isprintable() else "·" for letter in text)
    if index == context.at:
        return f"⟦{printable}⟧"
    return f"‹{printable}›" if context.activations[index] > 0 else printable


def as_json(samples: Sequence[FeatureSample]) -> list[dict[str, object]]:
    """The same as plain data."""
    return [asdict(sample) for sample in samples]
