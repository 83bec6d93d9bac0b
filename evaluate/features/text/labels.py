"""A label for a feature without a model: the tokens that it fires on, and the tokens beside them, in words.

It only says what was counted. So it is a baseline for better labels, and a text that can be searched.
"""

from evaluate.features.evidence import Evidence
from evaluate.features.tokens import NO_TOKEN

_MIN_SHARE = 0.5
"""If a token has this share of the firings, it is named alone; a token beside it needs this share to be named."""
_MIN_NAMED_SHARE = 0.3
"""If the three most frequent tokens have a smaller share of the firings, they do not describe the feature."""
_MIN_LIFT = 2.0
"""A token beside the feature is named only if it is there so many times more often than elsewhere."""
_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
NEVER = "never fires here"


def visible(text: str) -> str:
    """A token's text on one line: line breaks and tabs as symbols, characters that cannot be printed as a dot."""
    return "".join(_VISIBLE.get(letter) or (letter if letter.isprintable() else "·") for letter in text)


def quoted(text: str) -> str:
    """The same between backticks, as in labels; a backtick within would end it, and is replaced."""
    return f"`{visible(text).replace('`', 'ˋ')}`"


def label_of(evidence: Evidence, feature: int) -> str:
    """For example: fires on ` import` (93 %), before ` numpy` (51 %)."""
    if not evidence.arrays["firings"][feature]:
        return NEVER
    phrases = [_on(evidence, feature), _beside(evidence, feature, "before", "after")]
    phrases.append(_beside(evidence, feature, "after", "before"))
    label = ", ".join(phrase for phrase in phrases if phrase)
    lifted = _lifted(evidence, feature)
    return f"{label}; lifts {lifted}" if lifted else label


def _on(evidence: Evidence, feature: int) -> str:
    tokens, shares = _listed(evidence, feature, "on")
    if shares[0] >= _MIN_SHARE:
        return f"fires on {quoted(tokens[0])} ({shares[0]:.0%})".replace("%", " %")
    named = ", ".join(quoted(token) for token in tokens[:3])
    share = sum(shares[:3])
    if share < _MIN_NAMED_SHARE:
        return f"fires on many tokens, such as {named}"
    return f"fires on {named} ({share:.0%})".replace("%)", " %)")


def _beside(evidence: Evidence, feature: int, offset: str, word: str) -> str:
    """The token before or after, if it is mostly the same one, and more often there than elsewhere."""
    tokens, shares = _listed(evidence, feature, offset)
    if not tokens or shares[0] < _MIN_SHARE or evidence.arrays[f"{offset}_lift"][feature, 0] < _MIN_LIFT:
        return ""
    return f"{word} {quoted(tokens[0])} ({shares[0]:.0%})".replace("%)", " %)")


def _lifted(evidence: Evidence, feature: int) -> str:
    """The tokens whose logits rise most, among those that occur in the rows: others may be untrained."""
    if "raised_token" not in evidence.arrays:
        return ""
    raised = [int(token) for token in evidence.arrays["raised_token"][feature] if evidence.occurs[token]]
    # A single byte of a character tells a reader nothing.
    words = [word for token in raised if not (word := evidence.word(token)).startswith("\\x")]
    return ", ".join(quoted(word) for word in words[:3])


def _listed(evidence: Evidence, feature: int, offset: str) -> tuple[list[str], list[float]]:
    ids = evidence.arrays[f"{offset}_token"][feature]
    there = ids != NO_TOKEN
    return [evidence.word(int(token)) for token in ids[there]], evidence.arrays[f"{offset}_share"][feature][
        there
    ].tolist()
