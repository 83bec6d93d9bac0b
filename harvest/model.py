"""Which language model it is, and loading it: safetensors only, no code from a repository, everything recorded.

A model is named by an alias (``gemma-2-2b``), a Hub name, or a local folder in Hugging Face format. A Hub name is
first brought to a local folder at one commit, so there is one way of loading. Only the blocks up to the last one
asked for are read: a harvest of layer 8 never holds layer 9.
"""

import copy
import itertools
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hugging_logging

from cache.device import choose_device
from cache.errors import DamagedError, DiskError, MismatchError, UsageError

ALIASES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-27b": "google/gemma-2-27b",
}
ARCHITECTURES = ("gpt2", "gemma2")
_WANTED = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
           "special_tokens_map.json", "vocab.json", "merges.txt"]  # fmt: skip
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class ModelFolder:
    """A model on this disk: the name asked for, its folder, its Hub commit (None for a local folder), its config."""

    name: str
    folder: Path
    revision: str | None
    config: Any

    @property
    def architecture(self) -> str:
        """Hugging Face's ``model_type``."""
        return str(self.config.model_type)

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Size of the residual stream, which is d_source and d_target of every site."""
        return int(self.config.hidden_size)

    @property
    def positions(self) -> int:
        """The longest context that the model takes."""
        return int(self.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the embedding knows."""
        return int(self.config.vocab_size)

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files, by name."""
        return sorted(self.folder.glob("*.safetensors"))

    @cached_property
    def parameters(self) -> int:
        """Number of stored weights, from the files' headers."""
        return sum(_stored_parameters(path) for path in self.weight_files)

    @cached_property
    def weights_hash(self) -> str:
        """The xxh3-128 of the safetensors files' bytes, in order of name."""
        digest = xxhash.xxh3_128()
        for path in self.weight_files:
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
        return digest.hexdigest()


def find_model(name: str, *, revision: str | None = None) -> ModelFolder:
    """Bring ``name`` to a local folder and check what it is.

    Raises UsageError for an unknown or gated name and for an architecture that is not supported, DiskError when the
    Hub cannot be reached, DamagedError when the folder has no safetensors weights.
    """
    if Path(name).is_dir():
        folder, commit = Path(name), None
    elif name.startswith((".", "/", "models/", "~")):
        raise UsageError(
            f"The model folder '{name}' does not exist.",
            where=Path(name).expanduser().absolute(),
            remedy=f"Give a folder in Hugging Face format, a Hub name, or one of: {', '.join(ALIASES)}.",
        )
    else:
        folder = _download(ALIASES.get(name, name), revision)
        commit = folder.name
    if not list(folder.glob("*.safetensors")):
        raise DamagedError(
            "The model has no .safetensors weights, and no other kind is ever read.",
            where=folder,
            remedy="Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder).",
        )
    return ModelFolder(name=name, folder=folder, revision=commit, config=_read_config(folder))


def _read_config(folder: Path) -> Any:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise DamagedError(f"The model's config.json cannot be read: {error}", where=folder) from None
    if kind not in ARCHITECTURES:
        raise UsageError(
            f"The architecture '{kind}' is not supported; its sites are not known here.",
            where=folder,
            remedy=f"Supported: {', '.join(ARCHITECTURES)}. harvest/sites.py says what a new one needs.",
        )
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError:
        raise UsageError(
            f"'{repository}' asks for a licence: accept it at {page}, then run `hf auth login` or set HF_TOKEN.",
            where=page,
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(
            f"No model '{repository}' on the Hub (or it is private and HF_TOKEN is not set), and no such folder here.",
            where=page,
            remedy=f"Give a folder in Hugging Face format, a Hub name, or one of: {', '.join(ALIASES)}.",
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"'{repository}' has no revision '{revision}'.", where=page) from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise DiskError(
            f"'{repository}' is not on this machine and the Hub cannot be reached: {type(error).__name__}.",
            where=page,
            remedy="Connect once, or give a local folder: models/gpt2-stdlib needs no network.",
        ) from None


def _stored_parameters(path: Path) -> int:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    shapes = (tensor["shape"] for name, tensor in header.items() if name != "__metadata__")
    return sum(int(torch.Size(shape).numel()) for shape in shapes)


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


def load_tokenizer(where: ModelFolder) -> ModelTokenizer:
    """The tokenizer in the model's folder. Raises UsageError when it cannot begin a context, MismatchError when it
    is larger than the model's embedding."""
    tokenizer = cast("Any", AutoTokenizer.from_pretrained(where.folder, trust_remote_code=False, local_files_only=True))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if backend is None or bos is None:
        raise UsageError(
            "The tokenizer cannot begin a context: it has no tokenizer.json form, or neither BOS nor end-of-text.",
            where=where.folder,
        )
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > where.vocabulary:
        raise MismatchError(
            f"The tokenizer has {size} entries, the model's embedding {where.vocabulary}.", where=where.folder
        )
    special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
    special_ids = tuple(sorted(special | {int(token) for token in tokenizer.all_special_ids}))
    return ModelTokenizer(backend=backend, bos=int(bos), special_ids=special_ids)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model, ready to run; ``hugging`` ends with block ``last_layer`` and keeps its embeddings."""

    where: ModelFolder
    tokenizer: ModelTokenizer
    hugging: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def last_layer(self) -> int:
        """The deepest block that was loaded."""
        return int(self.hugging.config.num_hidden_layers) - 1


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    last_layer: int | None = None,
) -> LanguageModel:
    """Load a model for inference, in evaluation mode and without gradients; ``last_layer`` None loads all of it.

    Raises what ``find_model`` raises, and UsageError for a device that is not there or a layer beyond the model.
    """
    where = find_model(name, revision=revision)
    return load_found(where, device=device, dtype=dtype, last_layer=last_layer)


def load_found(where: ModelFolder, *, device: str, dtype: str, last_layer: int | None = None) -> LanguageModel:
    """Load a model that ``find_model`` found; see ``load_model``."""
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    config = copy.deepcopy(where.config)
    if last_layer is not None:
        check_layers([last_layer], where)
        config.num_hidden_layers = last_layer + 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: last_layer + 1]
    # Loading draws a bar and reports the blocks that were left out on purpose.
    hugging_logging.disable_progress_bar()
    verbosity = hugging_logging.get_verbosity()
    hugging_logging.set_verbosity_error()
    try:
        hugging = AutoModelForCausalLM.from_pretrained(
            where.folder,
            config=config,
            dtype=torch_dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    finally:
        hugging_logging.set_verbosity(verbosity)
    hugging = cast("Any", hugging).to(torch_device).eval().requires_grad_(False)
    return LanguageModel(where, load_tokenizer(where), hugging, device=torch_device, dtype=torch_dtype)


def boot_bridge(model: LanguageModel) -> Any:
    """The same model, sharing its weights, as a plain TransformerLens bridge: the reference for the site proof.

    Plain means without ``enable_compatibility_mode``, which folds gains and centres weights.
    """
    from transformer_lens.model_bridge import TransformerBridge

    shared = {id(tensor): tensor for tensor in itertools.chain(model.hugging.parameters(), model.hugging.buffers())}
    twin = copy.deepcopy(model.hugging, shared)
    # The bridge wants a tokenizer object only to describe the model; ours is never used through it.
    tokenizer = AutoTokenizer.from_pretrained(model.where.folder, trust_remote_code=False, local_files_only=True)
    boot = cast("Any", TransformerBridge).boot_transformers
    return boot(
        str(model.where.folder), hf_model=twin, device=str(model.device), dtype=model.dtype, tokenizer=tokenizer
    )


def check_layers(layers: list[int], where: ModelFolder) -> None:
    """Raise UsageError when a layer is not one of the model's."""
    for layer in layers:
        if not 0 <= layer < where.layers:
            raise UsageError(
                f"Layer {layer} does not exist: {where.name} has layers 0 to {where.layers - 1}.",
                where=where.folder,
                remedy=f"Choose a layer from 0 to {where.layers - 1}.",
            )


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return cast("torch.dtype", getattr(torch, name))
