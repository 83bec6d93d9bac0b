"""Bringing a model from the Hugging Face Hub to a local folder at one commit: safetensors only, no code."""

from pathlib import Path

from common.errors import DiskError, UsageError
from common.known_models import KNOWN_MODELS

_WANTED = ["config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "tokenizer*",
           "special_tokens_map.json", "vocab.json", "merges.txt"]  # fmt: skip


def download(repository: str, revision: str | None) -> Path:
    """The local folder of a Hub repository, named by its commit.

    Raises UsageError for a name that is unknown or asks for a licence, DiskError when the Hub cannot be reached.
    """
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
            remedy=f"Give a folder in Hugging Face format, a Hub name, or one of: {', '.join(KNOWN_MODELS)}.",
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"'{repository}' has no revision '{revision}'.", where=page) from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise DiskError(
            f"'{repository}' is not on this machine and the Hub cannot be reached: {type(error).__name__}.",
            where=page,
            remedy="Connect once, or give a local folder: models/gpt2-stdlib needs no network.",
        ) from None
