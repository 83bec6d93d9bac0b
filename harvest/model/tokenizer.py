"""A model's tokenizer, and how a context begins."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import xxhash
from transformers import AutoTokenizer

from common.errors import MismatchError, UsageError
from harvest.model.source import ModelSource


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's tokenizer without Hugging Face around it; ``bos`` begins every context (GPT-2: its end-of-text)."""

    backend: Any
    bos: int
    special_ids: tuple[int, ...]

    @cached_property
    def json(self) -> str:
        """The whole tokenizer as tokenizer.json holds it."""
        return str(self.backend.to_str())

    @property
    def hash(self) -> str:
        """The xxh3-128 of ``json``."""
        return xxhash.xxh3_128_hexdigest(self.json.encode())


def load_tokenizer(source: ModelSource) -> ModelTokenizer:
    """The tokenizer in the model's folder. Raises UsageError when it cannot begin a context, MismatchError when it
    is larger than the model's embedding."""
    tokenizer = cast(
        "Any", AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if backend is None or bos is None:
        raise UsageError(
            "The tokenizer cannot begin a context: it has no tokenizer.json form, or neither BOS nor end-of-text.",
            where=source.folder,
        )
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > source.vocabulary:
        raise MismatchError(
            f"The tokenizer has {size} entries, the model's embedding {source.vocabulary}.", where=source.folder
        )
    special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
    special_ids = tuple(sorted(special | {int(token) for token in tokenizer.all_special_ids}))
    return ModelTokenizer(backend=backend, bos=int(bos), special_ids=special_ids)
