"""First-letter absorption: how often a letter's own features stay silent while others carry the letter.

Chanin et al. 2024 (arXiv 2409.14507), in the form and with the thresholds of SAEBench (Karvonen et al. 2025, arXiv
2503.09532), carried to transcoders in two spaces (``letters`` says which one is used):

                  target: what the decoder writes          source: what the encoder reads
    v_f           decoder row d_f                          encoder row e_f
    b_f           a_f ||d_f||                              a_f / ||e_f||
    Y             y . p_c                                  kappa_c (x - m) . p_c

    p_c       unit direction of the logistic probe of letter c in that space, fitted on training words
    main_c    the letter's main features: ranked by an L1 probe on the code, taken while each adds more than .03 of F1
    s_f       b_f cos(v_f, p_c), what feature f carries of the letter
    M = sum over main_c of s_f;   A = sum of the 3 largest s_f > 0, f not main, cos(v_f, p_c) >= .1

For every test word that the probe gets right:

    fraction = 0                                    if M >= Y or A < .4 Y
               1                                    if M <= 0
               min(A, Y - M) / (min(A, Y - M) + M)  otherwise
    full     = every main feature is silent, and the largest s_f has cos(v_f, p_c) >= .025 and s_f >= .4 Y

Both are averaged over a letter's words, then over the letters whose probe reaches F1 > .6; with fewer than 20 such
letters there is no score but a reason.

In the source every dimension is in its own unit, its standard deviation over the training words: x is the source
divided by it, e_f the encoder row times it. What an encoder reads does not change when dimensions are scaled, and so
neither does the score. The source is not a sum of encoder rows, so Y needs a unit: kappa_c is what the features carry
of a unit of the letter,

    kappa_c = (mean over training words of c of sum of s_f > 0  -  the same over all training words)
              / (mean over training words of c of x . p_c       -  the same over all training words)

with m the mean x of the training words. Where the encoder is orthonormal and reads everything, kappa_c is 1. A letter
whose kappa_c is under .05 is not carried, and is not scored.

Neither form changes when a feature's activation is multiplied and its decoder row divided by a number (or, in the
source, its encoder row multiplied), so no row needs unit norm.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluate.absorption.letters import MIN_LETTERS, LetterProbes, source_spread
from evaluate.absorption.logistic import f1_scores, fit_chosen, fit_l1, label_matrix, sparse_times
from evaluate.absorption.probe_set import LETTERS, ProbeSet
from transcoder.sparse_code import SparseCode, columns_of, firing_below, largest_sums, rows_of

F1_JUMP = 0.03
MAX_MAIN = 10
FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
MIN_SHARE = 0.4
MAX_ABSORBERS = 3
L1_SHARE = 0.05
"""The L1 probe's penalty, as a share of the least that leaves a letter no weight. Ours; the others are SAEBench's."""

MIN_CARRIED = 0.05
"""Of kappa; ours."""


@dataclass(frozen=True)
class MainFeatures:
    """Of each letter: the main features, best first, and the F1 of 1, 2, ... features on test words."""

    chosen: tuple[tuple[int, ...], ...]
    test_f1: Float[Tensor, "letters k"]


@dataclass(frozen=True)
class LetterScore:
    """Means over the test words of one letter that its probe gets right."""

    fraction: float
    full: float
    words: int


def score_prefix(
    code: SparseCode, words: ProbeSet, probes: LetterProbes, directions: Float[Tensor, "prefix width"]
) -> dict[str, Any]:
    """Absorption of the features that ``directions`` has a row for: decoder rows where the probes are on the target,
    encoder rows, times the source's spread, where they are on the source. Each prefix has main features of its own."""
    norms = directions.norm(dim=1)
    units = norms if probes.space == "target" else 1 / norms.clamp_min(1e-12)
    inside = firing_below(code, len(directions), units)
    cosine = (directions @ probes.direction) / norms.clamp_min(1e-12)[:, None]
    if probes.space == "target":
        along = words.target @ probes.direction
        letters = probes.counted
    else:
        along = _carried_source(inside, words, probes, cosine)
        letters = [letter for letter in probes.counted if bool(along[:, letter].any())]
        if len(letters) < MIN_LETTERS:
            carried = f"the prefix of {len(directions):,} carries {len(letters)} of {LETTERS} letters"
            reason = f"{carried}, and {MIN_LETTERS} are needed"
            return {"prefix": len(directions), "score": None, "full_absorption_rate": None, "reason": reason}

    main = find_main_features(inside, words, dict_size=len(directions))
    scores = {
        letter: _score_letter(
            rows_of(inside, probes.right[:, letter]),
            along[probes.right[:, letter], letter],
            cosine=cosine[:, letter],
            main=torch.tensor(main.chosen[letter], dtype=torch.long),
        )
        for letter in letters
    }
    return _prefix_summary(len(directions), scores, main)


def _carried_source(
    inside: SparseCode, words: ProbeSet, probes: LetterProbes, cosine: Float[Tensor, "prefix letters"]
) -> Float[Tensor, "words letters"]:
    """Y of the source: each word's projection in the unit of what features carry; 0 for a letter that no feature
    carries."""
    train = ~words.test
    labels = label_matrix(words.letter, LETTERS)[train].float()
    share = labels / labels.sum(dim=0).clamp_min(1)

    def above_average(values: Float[Tensor, "words letters"]) -> Float[Tensor, " letters"]:
        """For each letter, the mean over its training words minus the mean over all of them."""
        return (share * values[train]).sum(dim=0) - values[train].mean(dim=0)

    projection = (words.source / source_spread(words)) @ probes.direction
    carried = above_average(sparse_times(inside, cosine.clamp_min(0)))
    kappa = carried / above_average(projection).clamp_min(1e-12)
    return torch.where(kappa >= MIN_CARRIED, kappa, 0.0) * (projection - projection[train].mean(dim=0))


def find_main_features(code: SparseCode, words: ProbeSet, *, dict_size: int) -> MainFeatures:
    """Rank by an L1 probe on training words; take the next feature while it adds more than .03 of F1 there."""
    labels = label_matrix(words.letter, LETTERS)
    weight = fit_l1(rows_of(code, ~words.test), labels[~words.test], dict_size=dict_size, share=L1_SHARE)
    ranked = weight.topk(min(MAX_MAIN, dict_size), dim=0).indices.T
    table = torch.stack([columns_of(code, features, dict_size=dict_size) for features in ranked])
    train_f1, test_f1 = _f1_by_count(table, labels, words.test)
    useful = (weight.gather(0, ranked.T) > 0).sum(0).clamp_min(1)
    jumps = (train_f1.diff(dim=1) > F1_JUMP).long().cumprod(1).sum(1) + 1
    counts = torch.minimum(jumps, useful).tolist()
    chosen = tuple(tuple(features[:count].tolist()) for features, count in zip(ranked, counts, strict=True))
    return MainFeatures(chosen=chosen, test_f1=test_f1)


def _f1_by_count(
    table: Float[Tensor, "letters words k"], labels: Bool[Tensor, "words letters"], test: Bool[Tensor, " words"]
) -> tuple[Float[Tensor, "letters k"], Float[Tensor, "letters k"]]:
    """F1 on training and on test words of regressions on the first 1, 2, ..., k columns."""
    train_f1: list[Tensor] = []
    test_f1: list[Tensor] = []
    for count in range(1, table.shape[2] + 1):
        fitted = fit_chosen(table[:, ~test, :count], labels[~test].T)
        predicted = fitted.logits(table[:, :, :count]).T > 0
        train_f1.append(f1_scores(predicted[~test], labels[~test]))
        test_f1.append(f1_scores(predicted[test], labels[test]))
    return torch.stack(train_f1, 1), torch.stack(test_f1, 1)


def _score_letter(
    code: SparseCode, along: Float[Tensor, " words"], *, cosine: Float[Tensor, " prefix"], main: Int[Tensor, " main"]
) -> LetterScore:
    """Fraction and full absorption of the words in ``code``, whose activations are in units of decoder norm."""
    rows = code.rows().long()
    features = code.features.long()
    carried = code.values * cosine[features]
    is_main = torch.isin(features, main)
    count = code.row_count
    by_main = carried.new_zeros(count).index_add_(0, rows[is_main], carried[is_main])
    absorbs = ~is_main & (cosine[features] >= FRACTION_COSINE) & (carried > 0)
    by_absorbers = largest_sums(rows[absorbs], carried[absorbs], count, limit=MAX_ABSORBERS)
    fraction = absorption_fraction(by_main, by_absorbers, along)
    silent = ~torch.zeros(count, dtype=torch.bool).index_fill_(0, rows[is_main], True)
    full = silent & _one_carries(rows, carried, cosine[features], along)
    return LetterScore(fraction=float(fraction.mean()), full=float(full.double().mean()), words=count)


def absorption_fraction(
    by_main: Float[Tensor, " words"], by_absorbers: Float[Tensor, " words"], along: Float[Tensor, " words"]
) -> Float[Tensor, " words"]:
    """M, A and Y of the module's head to the fraction of each word."""
    taken = torch.minimum(by_absorbers, along - by_main)
    share = torch.where(by_main <= 0, 1.0, taken / (taken + by_main).clamp_min(1e-30))
    absorbed = (by_main < along) & (along > 0) & (by_absorbers >= MIN_SHARE * along)
    return torch.where(absorbed, share, 0.0)


def _one_carries(
    rows: Int[Tensor, " active"],
    carried: Float[Tensor, " active"],
    cosine: Float[Tensor, " active"],
    along: Float[Tensor, " words"],
) -> Bool[Tensor, " words"]:
    """Whether the feature that contributes most to a word points along the probe and has enough of it."""
    largest = largest_sums(rows, carried, len(along), limit=1)
    is_largest = carried == largest[rows]
    aligned = torch.zeros(len(along), dtype=torch.bool)
    aligned[rows[is_largest & (cosine >= FULL_COSINE)]] = True
    return aligned & (along > 0) & (largest >= MIN_SHARE * along)


def _prefix_summary(prefix: int, scores: dict[int, LetterScore], main: MainFeatures) -> dict[str, Any]:
    letters = list(scores)
    counts = [len(main.chosen[letter]) for letter in letters]
    return {
        "prefix": prefix,
        "score": sum(score.fraction for score in scores.values()) / len(scores),
        "full_absorption_rate": sum(score.full for score in scores.values()) / len(scores),
        "reason": None,
        "k_sparse_f1": {str(k + 1): float(main.test_f1[letters, k].mean()) for k in range(main.test_f1.shape[1])},
        "main_features_mean": sum(counts) / len(counts),
        "per_letter": {
            chr(97 + letter): {
                "score": score.fraction,
                "full": score.full,
                "words": score.words,
                "main": list(main.chosen[letter]),
            }
            for letter, score in scores.items()
        },
    }
