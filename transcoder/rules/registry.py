"""The selection rules by the names that settings and config.json use.

A new rule is a module in this folder with a class that extends ``Rule``, and one line in ``RULES``. Nothing here
imports torch: settings are checked against these names by commands that must start at once.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transcoder.rules.rule import Rule


@dataclass(frozen=True)
class Entry:
    """A rule's class, or where it is: ``module:class``, relative to this folder.

    ``trains``: whether ``train.activation`` may name it. ReLU is only for imported transcoders: their sparsity comes
    from a penalty on activations that our training does not have.
    """

    rule: "str | type[Rule]"
    trains: bool = False

    def load(self) -> "type[Rule]":
        """The class, imported when it is first needed."""
        if not isinstance(self.rule, str):
            return self.rule
        module, _, name = self.rule.partition(":")
        return getattr(import_module(f"{__package__}.{module}"), name)


RULES: dict[str, Entry] = {
    "topk": Entry("topk:TopK", trains=True),
    "batchtopk": Entry("batchtopk:BatchTopK", trains=True),
    "jumprelu": Entry("threshold:JumpReLU", trains=True),
    "relu": Entry("relu:ReLU"),
}


def trainable() -> list[str]:
    """The names that ``train.activation`` accepts."""
    return [name for name, entry in RULES.items() if entry.trains]


def make_rule(name: str, top_k: int, **own: Any) -> "Rule":
    """The rule that training uses, as settings name it; ``own`` are settings that only some rules know."""
    return RULES[name].load().from_settings(top_k, **own)
