"""The public transcoders of GPT-2 small (Dunefsky et al. 2024, arXiv 2406.11944): one PyTorch file a layer.

    final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.pt     {"cfg": an object, "state_dict": ...}
    W_enc (d_source, dict_size)  b_enc  b_dec (d_source,)  W_dec (dict_size, d_target)  b_dec_out (d_target,)

    f = relu((source - b_dec) @ W_enc + b_enc)         target = f @ W_dec + b_dec_out

A file without ``b_dec_out`` is an autoencoder of the same code, and adds ``b_dec``. The object's attributes are read;
its class does not exist here.
"""

from pathlib import Path
from typing import Any

from common.errors import DamagedError
from transcoder.formats.files.pickles import Settings, read_pickle, tensors_among
from transcoder.formats.wanted import Described, Wanted, dictionary_of, sites_of_hooks
from transcoder.rules.relu import ReLU
from transcoder.transcoder import Transcoder

_STAND_INS = tuple(
    f"sae_training.config.{name}"
    for name in ("LanguageModelSAERunnerConfig", "LanguageModelTranscoderRunnerConfig", "RunnerConfig")
)
_CENTRED = (
    "it was trained on a model whose writes to the residual stream TransformerLens had centred: its target is ours "
    "minus the mean over dimensions, so its FVU is worse here than in its paper"
)


def find_gpt2_transcoder(path: Path, _wanted: Wanted) -> Path | None:
    """The file that ``path`` means, where it is of this layout."""
    return path if path.is_file() and path.suffix == ".pt" and path.name.startswith("final_sparse_autoenc") else None


def read_gpt2_transcoder(path: Path, wanted: Wanted) -> Transcoder:
    """One layer's. Raises DamagedError, or MismatchError for a file that holds anything else."""
    found: Any = read_pickle(path, stand_ins=_STAND_INS)
    if not isinstance(found, dict) or not {"cfg", "state_dict"} <= found.keys():
        raise DamagedError("A dictionary with cfg and state_dict was expected.", where=path)
    config = _attributes(found["cfg"])
    tensors = tensors_among(
        found["state_dict"], names={"W_enc", "b_enc", "W_dec", "b_dec"}, optional=frozenset({"b_dec_out"}), path=path
    )
    subtracted = tensors["b_dec"]
    transcodes = "b_dec_out" in tensors
    if transcodes:
        tensors["b_dec"] = tensors.pop("b_dec_out")
    model = config.get("model_name")
    target = config.get("out_hook_point") if transcodes else None
    source, reconstructed = sites_of_hooks(config.get("hook_point"), target, path=path, wanted=wanted, model=model)
    return dictionary_of(
        tensors,
        Described(path, source, reconstructed, "gpt2-transcoder", model=model, notes=(_CENTRED,) if transcodes else ()),
        rule=ReLU(),
        wanted=wanted,
        subtracted=subtracted,
    )


def _attributes(settings: object) -> dict[str, Any]:
    """What the settings' object holds; a dictionary is as good as one."""
    return dict(settings) if isinstance(settings, dict) else vars(settings) if isinstance(settings, Settings) else {}
