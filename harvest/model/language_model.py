"""Loading a language model: safetensors only, no code from a repository.

Only the blocks up to the last requested one are read: a harvest of layer 8 does not load layer 9.
"""

import copy
import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as hugging_logging

from common.device import choose_device
from common.errors import CapacityError, DamagedError
from harvest.model.families import check_modules
from harvest.model.fit import check_fit, check_quantisation
from harvest.model.placement import DeviceMap, place_blocks
from harvest.model.sites import Family, Norm, module_at, read_norm
from harvest.model.source import ModelSource, cut_config, find_model
from harvest.model.tokenizer import ModelTokenizer, load_tokenizer


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model, ready to run; ``hugging`` ends with block ``last_layer`` and has its embeddings.

    ``device`` is that of its embeddings, to which tokens are sent.
    """

    source: ModelSource
    tokenizer: ModelTokenizer
    hugging: Any
    device: torch.device
    dtype: torch.dtype
    notes: tuple[str, ...] = ()
    """What is unusual about the files, for people."""

    @property
    def family(self) -> Family:
        """Where the model's sites are."""
        return self.source.family

    @property
    def devices(self) -> list[torch.device]:
        """All devices that have weights."""
        return list(dict.fromkeys(parameter.device for parameter in self.hugging.parameters()))

    @property
    def last_layer(self) -> int:
        """The deepest block that was loaded."""
        return int(self.hugging.config.num_hidden_layers) - 1

    def cut(self, last_layer: int) -> None:
        """Remove the blocks after ``last_layer``; the others compute the same as before."""
        *path, name = self.family.blocks.split(".")
        owner = module_at(self.hugging, ".".join(path))
        setattr(owner, name, getattr(owner, name)[: last_layer + 1])
        cut_config(self.hugging.config, last_layer)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def block(self, layer: int) -> Any:
        """Transformer block ``layer``."""
        return module_at(self.hugging, self.family.blocks)[layer]

    def device_of(self, layer: int) -> torch.device:
        """The device that computes the block's rows."""
        return next(self.block(layer).parameters()).device

    def norm(self, layer: int) -> Norm:
        """The norm before the MLP of ``layer``."""
        return read_norm(module_at(self.block(layer), self.family.norm), self.family, width=self.source.width)


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    last_layer: int | None = None,
) -> LanguageModel:
    """Load a model for inference, in evaluation mode and without gradients; ``last_layer`` None loads all of it.

    Raises what ``find_model`` raises, and UsageError for a device or a layer that does not exist.
    """
    source = find_model(name, revision=revision)
    return load_found(source, device=device, dtype=dtype, last_layer=last_layer)


def load_found(
    source: ModelSource,
    *,
    device: str,
    dtype: str,
    last_layer: int | None = None,
    all_blocks: bool = False,
    tokenizer: ModelTokenizer | None = None,
) -> LanguageModel:
    """Load a model that ``find_model`` found; see ``load_model``.

    ``all_blocks``: load all of them, to ``cut`` the model later. ``tokenizer``: the model's tokenizer if it is read
    already, for reading one of 256,000 tokens takes a second.

    With device ``auto`` a model that does not fit on the first card is spread over all of them. Raises CapacityError
    when it does not fit there either, MismatchError when the files do not have all of the model's weights.
    """
    check_quantisation(source)
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    kept_layer = source.layers - 1 if last_layer is None else last_layer
    loaded_layer = source.layers - 1 if all_blocks else kept_layer
    config = source.config_up_to(loaded_layer)
    placed = place_blocks(source, config, torch_dtype, device=device, kept_layer=kept_layer)
    tokenizer = tokenizer or load_tokenizer(source)

    # A GPU takes each tensor from its file, so that main memory never has all weights at once.
    straight = {"": str(torch_device)} if torch_device.type == "cuda" else None
    hugging, info = _from_pretrained(source, config=config, dtype=torch_dtype, device_map=placed or straight)
    notes = check_fit(info, source, last_layer=loaded_layer)
    hugging = hugging if placed else hugging.to(torch_device)
    hugging = hugging.eval().requires_grad_(False)
    check_modules(hugging, source.family)
    return LanguageModel(source, tokenizer, hugging, device=torch_device, dtype=torch_dtype, notes=tuple(notes))


def _from_pretrained(
    source: ModelSource, *, config: Any, dtype: torch.dtype, device_map: DeviceMap | None
) -> tuple[Any, dict[str, Any]]:
    """Hugging Face's model and its loading report; its progress bar and printed reports are switched off."""
    hugging_logging.disable_progress_bar()
    verbosity = hugging_logging.get_verbosity()
    hugging_logging.set_verbosity_error()
    try:
        return cast("Any", AutoModelForCausalLM).from_pretrained(
            source.folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise CapacityError(
            f"The weights of {source.name} do not fit in the device's memory.",
            remedy="Choose harvest.dtype bfloat16, a lower layer, or another device.",
        ) from None
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedError(
            f"The weights cannot be loaded into the model: {first_line.rstrip('.')}.",
            where=source.folder,
            remedy="Copy or download the model again, with the config.json that belongs to it.",
        ) from None
    finally:
        hugging_logging.set_verbosity(verbosity)


def boot_bridge(model: LanguageModel) -> Any:
    """The same model with the same weights as a plain TransformerLens bridge: the reference for the site proof.

    Plain means without ``enable_compatibility_mode``, which folds gains and centres weights.
    """
    from transformer_lens.model_bridge import TransformerBridge

    shared = {id(tensor): tensor for tensor in itertools.chain(model.hugging.parameters(), model.hugging.buffers())}
    twin = copy.deepcopy(model.hugging, shared)
    boot = cast("Any", TransformerBridge).boot_transformers
    return boot(
        str(model.source.folder), hf_model=twin, device=str(model.device), dtype=model.dtype, tokenizer=_stand_in()
    )


def _stand_in() -> Any:
    """A tokenizer of one token. The bridge needs one to describe the model, changes it, and is never given text;
    without it, the bridge would read the model's own tokenizer from its files, once or twice."""
    word = "a"
    names = dict.fromkeys(("eos_token", "pad_token", "unk_token"), word)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({word: 0}, unk_token=word)), **names)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return cast("torch.dtype", getattr(torch, name))
