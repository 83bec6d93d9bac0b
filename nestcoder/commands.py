"""What each command does: names the folders, calls the stage, and words the result for people.

Every function returns (result for ``--json``, text for people).
"""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from nestcoder.progress import LineProgress, TerminalProgress, duration, make_progress
from nestcoder.ranks import process_group, read_ranks
from nestcoder.runs import known_layers

if TYPE_CHECKING:
    from harvest.request import HarvestRequest
    from nestcoder.cli import Invocation

Said = tuple[Any, str]

_SHOWN_FEATURES, _SHOWN_CONTEXTS = 6, 3


@dataclass(frozen=True)
class EvaluateOptions:
    """What ``evaluate`` may be asked beside the layers."""

    name: str
    lm: bool
    gemma_scope: str | None
    against: Path | None
    force: bool


def harvest(invocation: "Invocation", layers: list[int], device: str, *, fresh: bool) -> Said:
    """Harvest ``layers`` in one pass, or go on where an earlier harvest stopped."""
    from harvest.run import harvest_layers

    with shown_progress() as progress:
        result = harvest_layers(_harvest_request(invocation, layers, device), fresh=fresh, progress=progress)
    return result, "\n".join(f"harvested: {invocation.folders(layer).cache}" for layer in layers)


def _harvest_request(invocation: "Invocation", layers: list[int], device: str) -> "HarvestRequest":
    from harvest.request import HarvestRequest

    settings = invocation.settings
    ranks = read_ranks()
    return HarvestRequest(
        model=settings.model,
        folders={layer: invocation.folders(layer).cache for layer in layers},
        settings=settings.harvest,
        cache=settings.cache,
        device=ranks.device(device),
        rank=ranks.rank,
        world=ranks.world,
    )


def plan_harvest(invocation: "Invocation", layers: list[int], device: str) -> Said:
    """What ``harvest`` would take: rows, bytes, memory, minutes."""
    from harvest.plan import plan_harvest as plan

    found = asdict(plan(_harvest_request(invocation, layers, device)))
    return found, as_lines(found)


def harvest_probe(invocation: "Invocation", layers: list[int], device: str) -> Said:
    """Harvest the first-letter prompts beside each layer's finished cache."""
    from harvest.probe import harvest_probe as harvest_words

    folders = {layer: invocation.folders(layer).probe("first-letter") for layer in layers}
    with shown_progress() as progress:
        result = harvest_words(_harvest_request(invocation, layers, device), folders=folders, progress=progress)
    return result, "\n".join(f"harvested: {folder}" for folder in folders.values())


def train(invocation: "Invocation", layers: list[int], device: str, *, name: str, fresh: bool) -> Said:
    """Train one transcoder (or the settings' sweep) a layer."""
    from train.run import train_layer

    settings, ranks = invocation.settings, read_ranks()
    results: dict[int, Any] = {}
    with shown_progress() as progress, process_group(ranks, ranks.device(device)):
        for layer in layers:
            folders = invocation.folders(layer)
            results[layer] = train_layer(
                cache=folders.cache,
                cache_settings=settings.cache,
                out=folders.transcoder(name),
                settings=settings.train,
                device=ranks.device(device),
                fresh=fresh,
                progress=progress,
                log=settings.log,
            )
    return results, "\n".join(f"trained: {invocation.folders(layer).transcoder(name)}" for layer in layers)


def plan_train(invocation: "Invocation", layers: list[int], device: str, *, name: str) -> Said:
    """What ``train`` would take for each layer: steps, epochs, memory, disk, minutes."""
    from common.device import choose_device
    from train.plan import plan_train as plan

    settings, place = invocation.settings, str(choose_device(read_ranks().device(device)))
    plans: dict[int, dict[str, Any]] = {}
    for layer in layers:
        folders = invocation.folders(layer)
        found = plan(
            cache=folders.cache,
            cache_settings=settings.cache,
            settings=settings.train,
            device=place,
            out=folders.transcoder(name),
        )
        plans[layer] = asdict(found)
    return plans, "\n\n".join(f"layer {layer}\n{as_lines(found)}" for layer, found in plans.items())


def evaluate(invocation: "Invocation", layers: list[int], device: str, options: EvaluateOptions) -> Said:
    """Evaluate the transcoder ``options.name`` of each layer; one table for all."""
    from evaluate.report.report import table_of_runs
    from evaluate.run import evaluate_layer

    settings, ranks = invocation.settings, read_ranks()
    chosen = layers or _trained_layers(invocation, options.name)
    results: dict[int, Any] = {}
    with shown_progress() as progress, process_group(ranks, ranks.device(device)):
        for layer in chosen:
            folders = invocation.folders(layer)
            results[layer] = evaluate_layer(
                cache=folders.cache,
                cache_settings=settings.cache,
                transcoder=folders.transcoder(options.name),
                out=folders.report(options.name),
                settings=settings.evaluate,
                device=ranks.device(device),
                lm=settings.model if options.lm else None,
                gemma_scope=options.gemma_scope,
                against=options.against,
                force=options.force,
                progress=progress,
            )
    return results, "\n".join([table_of_runs(results), *_where_to_read(invocation, chosen, options.name)])


def _where_to_read(invocation: "Invocation", layers: list[int], name: str) -> list[str]:
    """A few features' top contexts where there is one layer to speak of, and where the reports lie."""
    reports = [invocation.folders(layer).report(name) for layer in layers]
    samples = reports[0] / "samples.txt"
    shown: list[str] = []
    if len(reports) == 1 and samples.is_file():
        features = samples.read_text(encoding="utf-8").strip().split("\n\n")[:_SHOWN_FEATURES]
        if any(features):
            shown = ["", "Where some features fire most:", "", *("\n".join(_shortened(text)) for text in features)]
    return [*shown, "", *(f"report: {report}" for report in reports)]


def _shortened(feature: str) -> list[str]:
    return feature.splitlines()[: 1 + _SHOWN_CONTEXTS]


def _trained_layers(invocation: "Invocation", name: str) -> list[int]:
    runs, model = Path(invocation.settings.runs), invocation.settings.model
    layers = [layer for layer in known_layers(runs, model) if name in invocation.folders(layer).trained()]
    if not layers:
        what = f"No layer of {model} has a trained transcoder named '{name}'."
        raise UsageError(what, where=runs, remedy="Run 'make harvest LAYER=8' and 'make train LAYER=8' first.")
    return layers


@contextmanager
def shown_progress() -> Generator[TerminalProgress | LineProgress]:
    """Progress on standard error while the block runs; SIGTERM unwinds it as Ctrl-C does, and leaves with 143."""
    progress = make_progress()

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield progress
    finally:
        progress.end()
        signal.signal(signal.SIGTERM, before)


def as_lines(facts: dict[str, Any]) -> str:
    """Facts, one a line, for people: counts with separators, bytes in GB, seconds in minutes."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {_worded(name, value)}" for name, value in facts.items())


def _worded(name: str, value: Any) -> str:
    if name.startswith("bytes_") or name.endswith("_bytes"):
        return f"{value / 1e9:,.3f} GB"
    if name.endswith("seconds"):
        return duration(value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
