"""A transcoder as another tool can hold it: one prefix, one input, one kind of selection; and what that costs.

exact                   the same numbers in another place
exact up to rounding    a norm's gain, or a bias, folded into the encoder in float64
approximate             top-k as thresholds: the same features, on other rows
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from common.errors import MismatchError, UsageError
from common.norm import NormAffine
from transcoder.formats.about import About
from transcoder.formats.foreign import WRITERS, Writer
from transcoder.norm import fold_gain, unfold_gain
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import SourceView, Transcoder

Exactness = Literal["exact", "exact up to rounding", "approximate"]

_SITES = ("mlp_in", "ln2_normalized")


@dataclass(frozen=True)
class Wish:
    """What a user asks of an export beside its format."""

    prefix: int | None = None
    source_view: SourceView | None = None


@dataclass(frozen=True)
class Converted:
    """``exactness`` of ``transcoder`` against the prefix it was made of; ``steps`` say what was done, in words.

    ``prefix`` says of which dictionary it is a prefix, and how it was made; None for the whole.
    """

    transcoder: Transcoder
    about: About
    exactness: Exactness
    steps: tuple[str, ...]
    prefix: dict[str, Any] | None = None

    def recorded(self, record: dict[str, Any]) -> "Converted":
        """The same with ``record`` for the metadata of the file."""
        return replace(self, about=replace(self.about, record=record))


def about_of(writer: Writer, about: About, wish: Wish) -> About:
    """``about`` with the input that the written file reads."""
    view = wish.source_view or writer.view
    return about if about.is_autoencoder or view is None else replace(about, source_site=view)


def refusal(name: str, transcoder: Transcoder, about: About) -> UsageError | None:
    """Why the format ``name`` cannot hold a transcoder in any way; the remedy names the formats that can."""
    problem = _problem(name, transcoder, about)
    if problem is None:
        return None
    able = [known for known in WRITERS if _problem(known, transcoder, about) is None]
    return UsageError(problem, remedy=f"Export to {' or '.join(able)}." if able else "")


def _problem(name: str, transcoder: Transcoder, about: About) -> str | None:
    """What a format lacks for a transcoder; None where it can hold it."""
    writer = WRITERS[name]
    saelens_topk = name == "saelens" and isinstance(transcoder.rule, TopK)
    if not about.is_autoencoder and (about.source_site not in _SITES or about.target_site != "mlp_out"):
        return f"No other tool reads a dictionary from {about.source_site} to {about.target_site}."
    if transcoder.W_skip is not None and (not writer.skip or saelens_topk):
        return f"{name} cannot store the skip of this transcoder."
    if (not writer.two_widths or saelens_topk) and transcoder.d_source != transcoder.d_target:
        return f"{name} needs one width; this transcoder maps {transcoder.d_source} to {transcoder.d_target}."
    if about.is_autoencoder and not writer.autoencoders:
        return f"{name} is for transcoders; this dictionary is an autoencoder of {about.target_site}."
    if "jumprelu" not in writer.rules and transcoder.rule.name not in writer.rules:
        return f"{name} selects by {', '.join(sorted(writer.rules))}; this transcoder by {transcoder.rule.name}."
    try:
        writer.folder(about, transcoder.dict_size, 0.0)
    except UsageError as error:
        return error.what
    return None


def convert(
    writer: Writer,
    transcoder: Transcoder,
    about: About,
    *,
    wish: Wish,
    norm: NormAffine | None,
    thresholds: Callable[[], JumpReLU],
) -> Converted:
    """``transcoder`` as ``writer`` holds it. ``thresholds`` is called where top-k must become thresholds.

    Raises UsageError for a prefix that is none, MismatchError where an input is asked for that cannot be had.
    """
    steps: list[str] = []
    exactness: Exactness = "exact"
    kept = transcoder.rule.name in writer.rules
    made = transcoder if kept else transcoder.replaced(rule=_as_thresholds(transcoder, thresholds))
    if not kept and isinstance(transcoder.rule, TopK):
        exactness = "approximate"
        steps.append("top-k became thresholds, matched per feature to its own firing rate on training rows")
    elif not kept:
        steps.append(f"{transcoder.rule.name} written as thresholds, which select the same")
    made, prefix = _at_prefix(made, wish.prefix)
    if prefix:
        steps.append(f"prefix of {prefix['size']:,} features: {prefix['made_by']}")
    written = about_of(writer, about, wish)
    if written.source_site != about.source_site:
        view: SourceView = "ln2_normalized" if written.source_site == "ln2_normalized" else "mlp_in"
        made = reading(view, made, norm)
        exactness = "exact up to rounding" if exactness == "exact" else exactness
        steps.append(f"the norm's gain and bias were folded into the encoder, which now reads {view}")
    if exactness == "exact" and writer.rounds(made, written):
        exactness = "exact up to rounding"
        steps.append("b_dec, which the tool subtracts from what it reads, was folded into b_enc")
    return Converted(made, written, exactness, tuple(steps), prefix)


def _as_thresholds(transcoder: Transcoder, thresholds: Callable[[], JumpReLU]) -> JumpReLU:
    """JumpReLU that selects what the rule does, where one number says it for every feature; else the matched ones."""
    floor = transcoder.rule.floor(transcoder.b_enc.detach())
    return thresholds() if floor is None else JumpReLU(floor.clone())


def _at_prefix(transcoder: Transcoder, size: int | None) -> tuple[Transcoder, dict[str, Any] | None]:
    """One prefix as a dictionary of its own. Under top-k the whole dictionary selects, so the decoder is cut to zero
    after the prefix; under thresholds every feature stands alone, so all arrays are cut."""
    if size is None or size == transcoder.dict_size:
        return transcoder, None
    if size not in transcoder.prefixes:
        raise UsageError(f"{size} is not a prefix of this transcoder; it has {list(transcoder.prefixes)}.")
    prefixes = transcoder.prefixes[: transcoder.prefixes.index(size) + 1]
    cut_at = {"of": transcoder.dict_size, "size": size}
    if isinstance(transcoder.rule, JumpReLU):
        cut = {name: getattr(transcoder, name).detach()[:size] for name in ("W_enc", "b_enc", "W_dec")}
        rule = JumpReLU(transcoder.rule.threshold[:size])
        small = transcoder.replaced(**cut, rule=rule, prefixes=prefixes, prefix=size)
        return small, cut_at | {"made_by": "the arrays were cut after it"}
    W_dec = transcoder.W_dec.detach().clone()
    W_dec[size:] = 0
    zeroed = transcoder.replaced(W_dec=W_dec, prefixes=(*prefixes, transcoder.dict_size))
    return zeroed, cut_at | {
        "made_by": "decoder rows after it are zero; the whole dictionary still selects, and L0 counts it"
    }


def sized(transcoder: Transcoder, size: int | None) -> Transcoder:
    """A transcoder with as many features as that prefix has, for what only the size matters of."""
    end = size or transcoder.dict_size
    cut = {name: getattr(transcoder, name).detach()[:end] for name in ("W_enc", "b_enc", "W_dec")}
    return transcoder.replaced(**cut, prefixes=(end,), prefix=end)


def reading(view: SourceView, transcoder: Transcoder, norm: NormAffine | None) -> Transcoder:
    """The same reading the view, exactly. Raises MismatchError where the norm's gain is not known."""
    if norm is None:
        what = f"The gain of the norm is not known, so this transcoder cannot be made to read {view}."
        raise MismatchError(what, remedy="Export it in the input that it was trained on, with --source-view.")
    return unfold_gain(transcoder, norm) if view == "ln2_normalized" else fold_gain(transcoder, norm)
