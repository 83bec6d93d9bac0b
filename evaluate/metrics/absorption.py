"""First-letter absorption: how often a letter's own features stay silent while others carry the letter.

Chanin et al. 2024 (arXiv 2409.14507), in the form and with the thresholds of SAEBench (Karvonen et al. 2025, arXiv
2503.09532), carried to transcoders: the probe lives where the decoder writes, features are read from the source.

    p_c       unit direction of the logistic probe of letter c on the target activations y, fitted on training words
    main_c    the letter's main features: ranked by an L1 probe on the code, taken while each adds more than .03 of F1
    s_f       a_f (d_f . p_c), what feature f contributes along the probe; d_f its decoder row
    M = sum over main_c of s_f;   Y = y . p_c;   A = sum of the 3 largest s_f > 0, f not main, cos(d_f, p_c) >= .1

For every test word that the probe gets right:

    fraction = 0                                    if M >= Y or A < .4 Y
               1                                    if M <= 0
               min(A, Y - M) / (min(A, Y - M) + M)  otherwise
    full     = every main feature is silent, and the largest s_f has cos(d_f, p_c) >= .025 and s_f >= .4 Y

Both are averaged over a letter's words, then over the letters whose probe reaches F1 > .6; with fewer than 20 such
letters there is no score but a reason. Contributions do not change when a decoder row is scaled and its activation
divided, so rows need no unit norm.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluate.metrics.logistic import Probes, f1_scores, fit_chosen, fit_dense, fit_l1, label_matrix
from evaluate.metrics.probe_set import LETTERS, ProbeSet
from transcoder.sparse_code import SparseCode, columns_of, firing_below, largest_sums, rows_of, stacked
from transcoder.transcoder import Transcoder

MIN_PROBE_F1 = 0.6
MIN_LETTERS = 20
F1_JUMP = 0.03
MAX_MAIN = 10
FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
MIN_SHARE = 0.4
MAX_ABSORBERS = 3
L1_SHARE = 0.05
"""The L1 probe's penalty, as a share of the least that leaves a letter no weight. Ours; the others are SAEBench's."""

ENCODED_WORDS = 1024
"""At a time, so that memory does not grow with words x dict_size."""

LARGE_MODEL_PARAMETERS = 1_000_000_000
LARGE_DICTIONARY = 16_384


@dataclass(frozen=True)
class LetterProbes:
    """Shared by every dictionary and prefix. ``f1`` is taken on test words; ``right`` marks the words it scores on."""

    direction: Float[Tensor, "d_target letters"]
    f1: Float[Tensor, " letters"]
    right: Bool[Tensor, "words letters"]

    @property
    def counted(self) -> list[int]:
        """The letters whose probe is good enough and gets at least one word right."""
        usable = (self.f1 > MIN_PROBE_F1) & self.right.any(0)
        return usable.nonzero().flatten().tolist()


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


def fit_letter_probes(words: ProbeSet) -> LetterProbes:
    """One logistic probe a letter on the target activations of the training words."""
    labels = label_matrix(words.letter, LETTERS)
    probes: Probes = fit_dense(words.target[~words.test], labels[~words.test])
    predicted = probes.logits(words.target) > 0
    direction = torch.nn.functional.normalize(probes.weight, dim=0)
    right = predicted & labels & words.test[:, None]
    return LetterProbes(direction=direction, f1=f1_scores(predicted[words.test], labels[words.test]), right=right)


def measure_absorption(dictionary: Transcoder, words: ProbeSet, probes: LetterProbes) -> dict[str, Any]:
    """The scores of every prefix of ``dictionary``, whose ``source_view`` the source of ``words`` must be in.

    ``score`` is the mean absorption fraction of the whole dictionary; null with a ``reason`` when fewer than 20 letters
    qualify.
    """
    summary = _describe(dictionary, words, probes)
    if reason := _refusal(words, probes):
        empty = {"score": None, "full_absorption_rate": None, "reason": reason}
        return summary | empty | {"per_prefix": [{"prefix": prefix, **empty} for prefix in dictionary.prefixes]}
    code = stacked([dictionary.sparse_code(some) for some in words.source.split(ENCODED_WORDS)])
    per_prefix = [score_prefix(code, words, probes, dictionary.W_dec[:prefix]) for prefix in dictionary.prefixes]
    whole = {name: per_prefix[-1][name] for name in ("score", "full_absorption_rate")}
    return summary | whole | {"reason": None, "per_prefix": per_prefix}


def score_prefix(
    code: SparseCode, words: ProbeSet, probes: LetterProbes, W_dec: Float[Tensor, "prefix d_target"]
) -> dict[str, Any]:
    """Absorption of the features that ``W_dec`` has rows for; main features are found anew for every prefix."""
    norms = W_dec.norm(dim=1)
    inside = firing_below(code, len(W_dec), norms)
    main = find_main_features(inside, words, dict_size=len(W_dec))
    cosine = (W_dec @ probes.direction) / norms.clamp_min(1e-12)[:, None]
    along = words.target @ probes.direction
    scores = {
        letter: _score_letter(
            rows_of(inside, probes.right[:, letter]),
            along[probes.right[:, letter], letter],
            cosine=cosine[:, letter],
            main=torch.tensor(main.chosen[letter], dtype=torch.long),
        )
        for letter in probes.counted
    }
    return _prefix_summary(len(W_dec), scores, main)


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
    rows, features = code.rows().long(), code.features.long()
    carried, is_main = code.values * cosine[features], torch.isin(features, main)
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
    """Whether a word's most contributing feature points along the probe and carries enough of it."""
    largest = largest_sums(rows, carried, len(along), limit=1)
    is_largest = carried == largest[rows]
    aligned = torch.zeros(len(along), dtype=torch.bool)
    aligned[rows[is_largest & (cosine >= FULL_COSINE)]] = True
    return aligned & (along > 0) & (largest >= MIN_SHARE * along)


def _refusal(words: ProbeSet, probes: LetterProbes) -> str | None:
    found = len(probes.counted)
    if found >= MIN_LETTERS:
        return None
    return (
        f"{found} of {LETTERS} letters have a probe with F1 > {MIN_PROBE_F1}, and {MIN_LETTERS} are needed: from "
        f"{int((~words.test).sum()):,} training words, first letters cannot be read off this layer well enough"
    )


def _describe(dictionary: Transcoder, words: ProbeSet, probes: LetterProbes) -> dict[str, Any]:
    """What the score rests on, and why it is exploratory where it is."""
    parameters = words.about.get("model_parameters")
    doubts: list[str] = []
    if isinstance(parameters, int) and parameters < LARGE_MODEL_PARAMETERS:
        doubts.append("the model has under 1 B parameters")
    if dictionary.dict_size < LARGE_DICTIONARY:
        doubts.append("the dictionary has under 16,384 features")
    return {
        "kind": "first-letter",
        "exploratory": " and ".join(doubts) or None,
        "letters_counted": len(probes.counted),
        "probe_f1": float(probes.f1.mean()),
        "probe_f1_per_letter": {chr(97 + letter): round(float(f1), 4) for letter, f1 in enumerate(probes.f1)},
        "words_train": int((~words.test).sum()),
        "words_test": int(words.test.sum()),
        "words_right": int(probes.right.sum()),
    }


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
