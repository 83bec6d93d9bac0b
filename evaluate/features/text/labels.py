"""A label for a feature without any model: the tokens that it fires on, and those beside them, in words.

It says what was counted and nothing else, so it is a baseline for better labels, and text to search in.
"""

from evaluate.features.evidence import Evidence
from evaluate.features.tokens import NO_TOKEN

_MIN_SHARE = 0.5
"""Share of the firings from which one token is named alone, and a token beside it is named at all."""
_MIN_NAMED_SHARE = 0.3
"""Share of the firings below which the three most frequent tokens do not describe the feature."""
_MIN_LIFT = 2.0
"""How many times more often than anywhere a token must stand beside the feature to be named."""
_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
NEVER = "never fires here"


def visible(text: str) -> str:
    """A token's text on one line: line breaks and tabs as signs, what cannot be printed as a dot."""
    return "".join(_VISIBLE.get(letter) or (letter if letter.isprintable() else "·") for letter in text)


def quoted(text: str) -> str:
    """The same between backticks, as labels write tokens; a backtick within would end it, and is turned."""
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
    """The token on one side, where it is mostly one and there more often than anywhere."""
    tokens, shares = _listed(evidence, feature, offset)
    if not tokens or shares[0] < _MIN_SHARE or evidence.arrays[f"{offset}_lift"][feature, 0] < _MIN_LIFT:
        return ""
    return f"{word} {quoted(tokens[0])} ({shares[0]:.0%})".replace("%)", " %)")


def _lifted(evidence: Evidence, feature: int) -> str:
    """The tokens whose logits rise most, of those that occur in the rows: others may never have been trained."""
    if "raised_token" not in evidence.arrays:
        return ""
    raised = [int(token) for token in evidence.arrays["raised_token"][feature] if evidence.occurs[token]]
    # A lone byte of a character says nothing to a reader.
    words = [word for token in raised if not (word := evidence.word(token)).startswith("\\x")]
    return ", ".join(quoted(word) for word in words[:3])


def _listed(evidence: Evidence, feature: int, offset: str) -> tuple[list[str], list[float]]:
    ids = evidence.arrays[f"{offset}_token"][feature]
    there = ids != NO_TOKEN
    return [evidence.word(int(token)) for token in ids[there]], evidence.arrays[f"{offset}_share"][feature][
        there
    ].tolist()
