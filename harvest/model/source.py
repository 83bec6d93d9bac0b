"""Finds a language model by alias, Hub name or local folder, with everything that is recorded about it.

A model of the Hub is first downloaded to a local folder at one commit, so there is one way of loading.
"""

import copy
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from transformers import AutoConfig

from common.errors import DamagedError, DiskError, UsageError
from common.known_models import KNOWN_MODELS, repository_of
from harvest.model.families import family_of
from harvest.model.hub import download
from harvest.model.sites import Family
from harvest.model.weight_files import check_folder, stored_weights, weight_files

# Read at a time while a file is hashed: 16 MB keep a disk busy and are very little compared with a model.
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class ModelSource:
    """A model on this disk: its name as given, its folder, its Hub commit (None for a local folder), its config and its
    family."""

    name: str
    folder: Path
    revision: str | None
    config: Any
    family: Family

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
        """Width of the residual stream: d_source and d_target of every site."""
        return int(self.config.hidden_size)

    @property
    def positions(self) -> int:
        """The longest context of the model."""
        return int(self.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Number of token ids in the embedding."""
        return int(self.config.vocab_size)

    @cached_property
    def parameters(self) -> int:
        """Number of stored weights, from the files' headers."""
        return self.parameters_up_to(self.layers - 1)

    def parameters_up_to(self, last_layer: int) -> int:
        """Number of stored weights outside the blocks and in the blocks up to ``last_layer``."""
        return sum(size for name, size in self._stored.items() if (self.block_of(name) or 0) <= last_layer)

    def block_of(self, tensor: str) -> int | None:
        """The number of the block that a stored tensor belongs to, by its name; None outside the blocks."""
        found = re.search(rf"(?:^|\.){self.family.blocks.split('.')[-1]}\.(\d+)\.", tensor)
        return int(found[1]) if found else None

    def config_up_to(self, last_layer: int) -> Any:
        """The configuration of the model cut after a block. Raises UsageError when there is no such block."""
        check_layers([last_layer], self)
        config = copy.deepcopy(self.config)
        cut_config(config, last_layer)
        return config

    @cached_property
    def _stored(self) -> dict[str, int]:
        return {name: size for path in weight_files(self.folder) for name, size in stored_weights(path)}

    @cached_property
    def weights_hash(self) -> str:
        """The xxh3-128 of the safetensors files' bytes, in order of name."""
        digest = xxhash.xxh3_128()
        for path in weight_files(self.folder):
            try:
                with path.open("rb") as file:
                    while piece := file.read(_PIECE_BYTES):
                        digest.update(piece)
            except OSError as error:
                raise DiskError(f"The weights cannot be read: {error.strerror}.", where=path) from None
        return digest.hexdigest()


def cut_config(config: Any, last_layer: int) -> None:
    """Change a configuration to that of the model cut after a block; some have lists with an entry for every block."""
    layers = config.num_hidden_layers
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list) and len(value) == layers:
            setattr(config, name, value[: last_layer + 1])
    config.num_hidden_layers = last_layer + 1


def find_model(name: str, *, revision: str | None = None) -> ModelSource:
    """The model ``name``, downloaded if it is on the Hub, after a check of its folder.

    Raises UsageError for an unknown or gated name and for an architecture that is not supported, DiskError when the
    Hub cannot be reached, DamagedError when the folder has no safetensors weights.
    """
    if Path(name).is_dir():
        folder = Path(name)
        commit = None
    elif name.startswith((".", "/", "models/", "~")):
        raise UsageError(
            f"The model folder '{name}' does not exist.",
            where=Path(name).expanduser().absolute(),
            remedy=f"Give a folder in Hugging Face format, a Hub name, or one of: {', '.join(KNOWN_MODELS)}.",
        )
    else:
        folder = download(repository_of(name), revision)
        commit = folder.name
    check_folder(folder)
    config = _read_config(folder)
    return ModelSource(name=name, folder=folder, revision=commit, config=config, family=family_of(config))


def _read_config(folder: Path) -> Any:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"The model's config.json cannot be read: {error}", where=folder) from None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (TypeError, AttributeError, KeyError, OSError) as error:
        raise DamagedError(f"The model's config.json cannot be used: {error}", where=folder) from None
    except ValueError:
        raise UsageError(
            f"The architecture '{kind}' is not supported: the installed transformers does not know it, and code from "
            "the model's folder is never run.",
            where=folder,
        ) from None


def check_layers(layers: list[int], source: ModelSource) -> None:
    """Raise UsageError when the model does not have one of the layers."""
    for layer in layers:
        if not 0 <= layer < source.layers:
            raise UsageError(
                f"Layer {layer} does not exist: {source.name} has layers 0 to {source.layers - 1}.",
                where=source.folder,
                remedy=f"Choose a layer from 0 to {source.layers - 1}.",
            )
