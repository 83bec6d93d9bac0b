"""The folders that the stages read and write, the layers that exist, and how processes share a stage."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from common.distributed import process_group, read_ranks
from common.errors import UsageError
from common.run_layout import RunFolders, check_of_one_layer, known_layers, run_folders
from nestcoder.config import PipelineSettings


def folders_of(settings: PipelineSettings, layer: int) -> RunFolders:
    """The folders of the cache, transcoders and reports of a layer."""
    return run_folders(Path(settings.runs), settings.model, layer)


def harvested_layers(settings: PipelineSettings) -> list[int]:
    """Layers that have a cache here. Raises UsageError if there are none."""
    runs = Path(settings.runs)
    layers = [layer for layer in known_layers(runs, settings.model) if folders_of(settings, layer).cache.is_dir()]
    if not layers:
        what = f"No layer of {settings.model} has been harvested."
        raise UsageError(what, where=runs, remedy="Run 'nestcoder harvest --layer all' first, or name the layers.")
    return layers


def layers_of_model(settings: PipelineSettings) -> list[int]:
    """All layers of the settings' model."""
    from harvest.model.source import find_model

    return list(range(find_model(settings.model, revision=settings.harvest.revision).layers))


def trained_layers(settings: PipelineSettings, name: str) -> list[int]:
    """Layers that have a trained transcoder of that name. Raises UsageError if there are none."""
    runs = Path(settings.runs)
    check_of_one_layer(runs, settings.model, (), name)
    layers = [layer for layer in known_layers(runs, settings.model) if name in folders_of(settings, layer).trained()]
    if not layers:
        what = f"No layer of {settings.model} has a trained transcoder named '{name}'."
        raise UsageError(what, where=runs, remedy="Run 'nestcoder harvest' and 'nestcoder train' for a layer first.")
    return layers


@contextmanager
def joined_processes(device: str) -> Generator[str]:
    """Connect the processes that torchrun started while the block runs; yields this process's device."""
    ranks = read_ranks()
    own_device = ranks.device(device)
    with process_group(ranks, own_device):
        yield own_device


def check_one_process(task: str) -> None:
    """Raises UsageError under torchrun for a ``task`` ("Transcoders are exported") of a single process."""
    if read_ranks().world > 1:
        raise UsageError(f"{task} by a single process only.", remedy="Run it without torchrun.")
