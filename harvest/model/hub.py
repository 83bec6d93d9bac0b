"""Downloads a model from the Hugging Face Hub to a local folder at one commit: safetensors only, no code."""

from pathlib import Path

from common.hub_errors import hub_errors

_WANTED = ["config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "tokenizer*",
           "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*", "adapter_config.json"]  # fmt: skip


def download(repository: str, revision: str | None) -> Path:
    """The local folder of a Hub repository, whose name is its commit.

    Raises UsageError for an unknown name or one that needs a licence, DiskError when the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    remedy = "Connect to the network once, or give a local folder: models/gpt2-stdlib needs no network."
    with hub_errors("model", repository, revision=revision, remedy=remedy):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
