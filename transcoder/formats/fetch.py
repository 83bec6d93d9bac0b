"""Where a dictionary lies that is named by a path, by its place on the Hugging Face Hub, or by a URL.

    hf:google/gemma-scope-2b-pt-transcoders/layer_8/width_16k/average_l0_52
    https://huggingface.co/google/gemma-scope-2b-pt-transcoders/tree/main/layer_8/width_16k/average_l0_52
    s3://bucket/dictionaries/layer08

Of a repository, or below a URL, the files directly in the folder are fetched, of a set of layers only the layer's;
never code. Of a repository without weights there, those of the one folder inside that has some.
"""

import re
from pathlib import Path, PurePosixPath

from common.errors import UsageError
from common.progress import Progress
from transcoder.formats.hub import HubRepository
from transcoder.formats.remote import RemoteFolder

_HUB = re.compile(r"(?:hf:(?://)?|https://huggingface\.co/)([\w.-]+/[\w.-]+)(?:/(?:(?:tree|blob)/main/)?(.*))?")
_WEIGHTS = {".safetensors", ".npz", ".pt"}
_READ = {".json", ".yaml", *_WEIGHTS}
_LISTED = 6
"""So many folders are named in a message."""
_DEEPER = ("checkpoints/final.pt", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors")


def fetched(path: str, *, layer: int, progress: Progress, endpoint: str | None = None) -> Path:
    """The local file or folder that ``path`` means.

    UsageError: no such files there. MismatchError: a file beyond the limits of size. DiskError.
    """
    found = _HUB.fullmatch(path.rstrip("/"))
    if found is None:
        if "://" in path:
            return _below_url(path, layer=layer, progress=progress)
        if path.startswith("hf:"):
            what = f"'{path}' is not an address that a dictionary can be fetched from."
            raise UsageError(what, remedy="Give a folder, a file, hf:user/repository/path, or s3://bucket/path.")
        return Path(path)
    hub = HubRepository(found[1], endpoint=endpoint, progress=progress)
    inside = found[2] or ""
    there = hub.paths()
    names = _wanted(there, inside, layer=layer)
    deeper = [] if _has_weights(names) else _with_weights(there, inside)
    if len(deeper) == 1:
        progress.note(f"{path} has files of weights only in {deeper[0]}; they are used.")
        inside = deeper[0]
        names = _wanted(there, inside, layer=layer)
    if not names or len(deeper) > 1:
        what = f"{found[1]} has no dictionary in '{inside}'{_listed(deeper)}."
        raise UsageError(what, where=path, remedy="Name the folder in the repository that has one.")
    files = [hub.fetch(name) for name in names]
    if names[0] == inside:
        return files[0]
    above = len(PurePosixPath(names[0]).relative_to(inside or ".").parts)
    return files[0].parents[above - 1]


def _has_weights(names: list[str]) -> bool:
    return any(PurePosixPath(name).suffix in _WEIGHTS for name in names)


def _with_weights(names: list[str], inside: str) -> list[str]:
    """The folders below ``inside`` that hold files of weights, checkpoints/ being the folder's that it lies in."""
    files = (PurePosixPath(name) for name in names if not inside or name.startswith(f"{inside}/"))
    folders = {file.parent for file in files if file.suffix in _WEIGHTS}
    return sorted({str(folder.parent if folder.name == "checkpoints" else folder) for folder in folders})


def _listed(folders: list[str]) -> str:
    """Some of the folders that could be meant."""
    return f", and several below it: {', '.join(folders[:_LISTED])}" if folders else ""


def _below_url(url: str, *, layer: int, progress: Progress) -> Path:
    remote = RemoteFolder(url, progress=progress)
    names = _wanted(remote.paths(), remote.inside, layer=layer)
    if not names:
        what = "There are no files of a dictionary here."
        raise UsageError(what, where=url, remedy="Check the address, and name the folder that has the dictionary.")
    return remote.fetch(names) / remote.inside


def _wanted(names: list[str], inside: str, *, layer: int) -> list[str]:
    """The files to fetch: the one that is named, or those of the folder."""
    if inside in names:
        beside = _beside(inside)
        return [inside, *(name for name in names if name in beside)] if beside else [inside]
    below = {name: PurePosixPath(name) for name in names if not inside or name.startswith(f"{inside}/")}
    local = {name: path.relative_to(inside or ".").as_posix() for name, path in below.items()}
    chosen = [
        name
        for name, path in local.items()
        if PurePosixPath(path).suffix in _READ and ("/" not in path or path in _DEEPER)
    ]
    one_layer = [name for name in chosen if local[name] == f"layer_{layer}.safetensors"]
    settings = [name for name in chosen if PurePosixPath(name).suffix in {".json", ".yaml"}]
    return one_layer + settings if one_layer else chosen


def _beside(name: str) -> set[str]:
    """What a file that is named alone needs from its folder."""
    folder = PurePosixPath(name).parent
    if PurePosixPath(name).suffix in {".npz", ".pt"}:
        return set()
    return {str(folder / name) for name in ("cfg.json", "config.json", "config.yaml", "hyperparams.json")}
