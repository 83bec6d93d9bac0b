"""Transcoders that were published on the Hugging Face Hub: ``hf:user/repository/layer08``.

The Hub's client keeps downloaded files, by commit. Both files are of one commit, and config.json has the hash of the
other. ``hf:user/repository@revision/layer08`` names a commit, branch or tag.
"""

import re
from pathlib import Path

from common.errors import UsageError
from common.hub_errors import hub_errors
from common.run_layout import CONFIG_FILE, WEIGHTS_FILE

PREFIX = "hf:"
_ADDRESS = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<inside>[\w./-]+))?")
_REMEDY = "Check the network (and HF_TOKEN), or download the folder and give its path."


def fetch_published(address: str) -> Path:
    """The local folder of a published transcoder.

    Raises UsageError where the address is wrong or leads nowhere; DiskError where the Hub cannot be reached.
    """
    matched = _ADDRESS.fullmatch(address)
    if not matched or ".." in (matched["inside"] or ""):
        raise UsageError(f"'{address}' is not an address on the Hub.", remedy="Write hf:user/repository/layer08.")
    from huggingface_hub import hf_hub_download

    repository = matched["repository"]
    inside = f"{matched['inside'].rstrip('/')}/" if matched["inside"] else ""
    with hub_errors("model", repository, remedy=_REMEDY, revision=matched["revision"]):
        config = Path(hf_hub_download(repository, f"{inside}{CONFIG_FILE}", revision=matched["revision"]))
        folder = config.parent
        # .../snapshots/<commit>/layer08/config.json: the weights of the same commit.
        commit = config.parts[config.parts.index("snapshots") + 1]
        hf_hub_download(repository, f"{inside}{WEIGHTS_FILE}", revision=commit)
    return folder
