"""A model's tokenizer, and how a context begins.

Truncation and padding in ``tokenizer.json`` would change the text: they are switched off, and ``notes`` says so. A
setting decides whether the name of a control token in a text (``<bos>``) stays plain text.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import xxhash
from transformers import AutoTokenizer

from common.errors import DamagedError, MismatchError, UsageError
from common.processes.garbage import no_collections
from harvest.model.source import ModelSource

BosPolicy = Literal["auto", "always", "never"]
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tiktoken.model", "tekken.json")
_SMALL_SHARE = 0.75
"""A tokenizer with a smaller share of the embedding's entries is probably another model's. With padded embeddings the
share is over 0.98."""


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's tokenizer: the backend of Hugging Face's object, and what the harvest needs to know about it.

    ``bos`` begins every context if ``begins_with_bos`` (GPT-2's is its end-of-text token), and pads short contexts.
    """

    backend: Any
    bos: int
    special_ids: tuple[int, ...]
    begins_with_bos: bool = True
    notes: tuple[str, ...] = ()
    """What was switched off or looks wrong, for people."""
    hugging: Any = None
    """Hugging Face's object, which has the chat template."""

    @cached_property
    def json(self) -> str:
        """The complete tokenizer as in tokenizer.json."""
        return str(self.backend.to_str())

    @property
    def hash(self) -> str:
        """The xxh3-128 of ``json``."""
        return xxhash.xxh3_128_hexdigest(self.json.encode())

    def count(self, content: str | list[int]) -> int:
        """Tokens of a document, without BOS."""
        if not isinstance(content, str):
            return len(content)
        return len(self.backend.encode(content, add_special_tokens=False).ids)

    def beginning(self, policy: BosPolicy) -> str:
        """The token with which contexts begin, and the setting, for people."""
        first = self.backend.id_to_token(self.bos) if self.begins_with_bos else "no BOS"
        return f"{first} (harvest.bos: {policy})"

    @property
    def has_chat_template(self) -> bool:
        """Whether ``render_chat`` can be used."""
        return bool(getattr(self.hugging, "chat_template", None))

    def render_chat(self, messages: Any) -> list[int]:
        """The token ids of a conversation in the tokenizer's chat template, with the template's control tokens.

        Raises what the template raises.
        """
        rendered = str(self.hugging.apply_chat_template(messages, tokenize=False))
        plain = self.backend.encode_special_tokens
        self.backend.encode_special_tokens = False
        try:
            return list(self.backend.encode(rendered, add_special_tokens=False).ids)
        finally:
            self.backend.encode_special_tokens = plain


def load_tokenizer(source: ModelSource, *, bos: BosPolicy = "auto", plain_text: bool = True) -> ModelTokenizer:
    """The tokenizer in the model's folder.

    With ``bos`` auto contexts begin with BOS if the tokenizer begins a text with it, or if its BOS is its end-of-text
    token, which separated documents in training. ``plain_text``: names of control tokens in a text are read as text.

    Raises UsageError when there is none or it has no token to begin a context with, MismatchError when it is larger
    than the model's embedding, DamagedError when it cannot be read.
    """
    with no_collections():  # hundreds of thousands of entries, which all stay
        hugging = _read(source)
    backend = getattr(hugging, "backend_tokenizer", None)
    bos_id = hugging.bos_token_id if hugging.bos_token_id is not None else hugging.eos_token_id
    if backend is None or bos_id is None:
        raise UsageError(
            "The tokenizer cannot be used: it has no tokenizer.json form, or neither BOS nor an end-of-text token.",
            where=source.folder,
        )
    notes = [*_switch_off(backend), *_check_size(backend, source), *_check_ids(hugging, source)]
    begins = bos == "always" or (bos == "auto" and _begins_with_bos(hugging, backend))
    if bos == "auto" and not begins:
        notes.append("Contexts begin without BOS, as the tokenizer begins a text (harvest.bos: auto).")
    backend.encode_special_tokens = plain_text
    special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
    return ModelTokenizer(
        backend=backend,
        bos=int(bos_id),
        special_ids=tuple(sorted(special | {int(token) for token in hugging.all_special_ids})),
        begins_with_bos=begins,
        notes=tuple(notes),
        hugging=hugging,
    )


def _read(source: ModelSource) -> Any:
    if not any((source.folder / name).is_file() for name in _FILES):
        raise UsageError(
            "The model's folder has no tokenizer.",
            where=source.folder,
            remedy="Copy tokenizer.json and tokenizer_config.json of the model into it.",
        )
    try:
        return cast("Any", AutoTokenizer).from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedError(f"The tokenizer cannot be read: {first_line}", where=source.folder) from None


def _switch_off(backend: Any) -> list[str]:
    """Switch off truncation, which would cut documents, and padding, which would add rows that are no text."""
    notes: list[str] = []
    if backend.truncation is not None:
        notes.append(f"Switched off the truncation to {backend.truncation['max_length']} tokens in tokenizer.json.")
        backend.no_truncation()
    if backend.padding is not None:
        notes.append("Switched off the padding in tokenizer.json.")
        backend.no_padding()
    return notes


def _check_size(backend: Any, source: ModelSource) -> list[str]:
    size = backend.get_vocab_size(with_added_tokens=True)
    highest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= source.vocabulary:
        beyond = [
            text for text, token in backend.get_vocab(with_added_tokens=True).items() if token >= source.vocabulary
        ]
        raise MismatchError(
            f"The tokenizer has {size:,} entries and the model's embedding {source.vocabulary:,}: it has no row for "
            f"{', '.join(repr(text) for text in sorted(beyond)[:3])}.",
            where=source.folder,
            remedy="Use the tokenizer that belongs to the model. Tokens that were added later have no weights.",
        )
    if size < _SMALL_SHARE * source.vocabulary:
        return [
            f"The tokenizer has {size:,} entries and the model's embedding {source.vocabulary:,}: "
            "it may be another model's."
        ]
    return []


def _check_ids(hugging: Any, source: ModelSource) -> list[str]:
    """A note if the configuration names another BOS: then one of the files is another model's."""
    stated = getattr(source.config, "bos_token_id", None)
    if isinstance(stated, int) and hugging.bos_token_id is not None and stated != hugging.bos_token_id:
        return [f"BOS is {hugging.bos_token_id} in the tokenizer and {stated} in config.json."]
    return []


def _begins_with_bos(hugging: Any, backend: Any) -> bool:
    if hugging.bos_token_id is None or hugging.bos_token_id == hugging.eos_token_id:
        return True
    ids = backend.encode("a", add_special_tokens=True).ids
    return bool(ids) and ids[0] == hugging.bos_token_id
