"""The commands of the stages: each calls its stage and returns the result as JSON and as text."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.run_layout import joint_folders, together_folder
from nestcoder.invocation import CommandResult, Invocation
from nestcoder.progress import shown_progress
from nestcoder.stages.evaluate import run_evaluate
from nestcoder.stages.folders import trained_layers
from nestcoder.stages.harvest import harvest_request, run_harvest, run_harvest_probe
from nestcoder.stages.joint import is_cross_layer, run_evaluate_joint
from nestcoder.stages.model import run_together
from nestcoder.stages.train import run_train, trainings
from nestcoder.text import as_lines

# Some features and contexts are shown at the end of an evaluation; samples.txt has all.
_SHOWN_FEATURES = 6
_SHOWN_CONTEXTS = 3


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of ``evaluate`` without layers and device."""

    name: str
    lm: bool
    gemma_scope: str | None
    against: Path | None
    force: bool
    beside: tuple[str, ...] = ()

    def of_one_layer(self) -> dict[str, Any]:
        """The options for the evaluation of a single layer."""
        return {key: value for key, value in vars(self).items() if key != "beside"}


def harvest(invocation: Invocation, layers: list[int], device: str, *, fresh: bool) -> CommandResult:
    """Harvest ``layers`` in one pass, or go on where an earlier harvest stopped."""
    with shown_progress() as progress:
        result = run_harvest(invocation.settings, layers, device=device, fresh=fresh, progress=progress)
    return CommandResult(result, "\n".join(f"harvested: {invocation.folders(layer).cache}" for layer in layers))


def plan_harvest(invocation: Invocation, layers: list[int], device: str) -> CommandResult:
    """What ``harvest`` would take: rows, bytes, memory, minutes."""
    from harvest.plan import plan_harvest as plan

    found = asdict(plan(harvest_request(invocation.settings, layers, device)))
    return CommandResult(found, as_lines(found))


def plan_probe(invocation: Invocation, layers: list[int], device: str) -> CommandResult:
    """What ``harvest --probe`` would take: words, tokens, bytes, minutes."""
    from harvest.probe.stage import plan_probe as plan

    folders = {layer: invocation.folders(layer).probe() for layer in layers}
    found = asdict(plan(harvest_request(invocation.settings, layers, device), folders=folders))
    return CommandResult(found, as_lines(found))


def harvest_probe(invocation: Invocation, layers: list[int], device: str, *, fresh: bool) -> CommandResult:
    """Harvest the first-letter prompts for each layer's finished cache."""
    with shown_progress() as progress:
        result = run_harvest_probe(invocation.settings, layers, device=device, fresh=fresh, progress=progress)
    return CommandResult(result, "\n".join(f"harvested: {invocation.folders(layer).probe()}" for layer in layers))


def train(invocation: Invocation, layers: list[int], device: str, *, name: str, fresh: bool) -> CommandResult:
    """Train one transcoder (or the settings' sweep) for each layer."""
    with shown_progress() as progress:
        results = run_train(invocation.settings, layers, name=name, device=device, fresh=fresh, progress=progress)
    lines = [f"trained: {out}" for _, out in trainings(invocation.settings, layers, name)]
    return CommandResult(results, "\n".join(lines))


def plan_train(invocation: Invocation, layers: list[int], device: str, *, name: str) -> CommandResult:
    """What ``train`` would take for each layer: steps, epochs, memory, disk, minutes."""
    from common.device import choose_device
    from common.distributed import read_ranks
    from train.plan import plan_layers as plan

    settings = invocation.settings
    chosen_device = str(choose_device(read_ranks().device(device)))
    plans: dict[str, dict[str, Any]] = {}
    for group, out in trainings(settings, layers, name):
        found = plan(
            caches=[invocation.folders(layer).cache for layer in group],
            cache_settings=settings.cache,
            settings=settings.train,
            device=chosen_device,
            out=out,
        )
        plans[", ".join(map(str, group))] = asdict(found)
    return CommandResult(plans, "\n\n".join(f"layer {layers}\n{as_lines(found)}" for layers, found in plans.items()))


def evaluate(invocation: Invocation, layers: list[int], device: str, options: EvaluateOptions) -> CommandResult:
    """Evaluate the transcoder ``options.name`` of each layer; one table for all."""
    from evaluate.report.table_of_runs import table_of_runs

    if options.beside or is_cross_layer(invocation.settings, layers, options.name):
        return evaluate_joint(invocation, layers, device, options)
    chosen = layers or trained_layers(invocation.settings, options.name)
    with shown_progress() as progress:
        results = run_evaluate(invocation.settings, chosen, device=device, progress=progress, **options.of_one_layer())
    return CommandResult(results, "\n".join([table_of_runs(results), *report_lines(invocation, chosen, options.name)]))


def evaluate_together(
    invocation: Invocation, layers: list[int], device: str, *, name: str, beside: tuple[str, ...] = ()
) -> CommandResult:
    """Splice the transcoders ``name`` of all layers into the language model at once.

    For a cross-layer transcoder, or with ``beside``, one table also has what the dictionaries explain of the rows.
    """
    from evaluate.spliced.all_layers import all_layers_table

    if beside or is_cross_layer(invocation.settings, layers, name):
        options = EvaluateOptions(name, lm=True, gemma_scope=None, against=None, force=False, beside=beside)
        return evaluate_joint(invocation, layers, device, options)
    with shown_progress() as progress:
        metrics = run_together(invocation.settings, layers, name=name, device=device, progress=progress)
    settings = invocation.settings
    folder = together_folder(Path(settings.runs), settings.model, name)
    return CommandResult(metrics, f"{all_layers_table(metrics)}\n\nreport: {folder}")


def evaluate_joint(invocation: Invocation, layers: list[int], device: str, options: EvaluateOptions) -> CommandResult:
    """Measure the dictionary ``options.name`` of several layers, and ``options.beside``, on the same rows; one
    table."""
    from evaluate.joint.table import joint_table

    if len(layers) < 2:
        raise UsageError("Several dictionaries are compared on two layers or more.", remedy="Give --layer all.")
    if options.gemma_scope or options.against:
        what = "Several layers cannot be compared by --gemma-scope or --against."
        raise UsageError(what, remedy="Give --beside with the name of another run.")
    with shown_progress() as progress:
        metrics = run_evaluate_joint(
            invocation.settings,
            layers,
            names=[options.name, *options.beside],
            device=device,
            lm=options.lm,
            progress=progress,
        )
    report = joint_folders(Path(invocation.settings.runs), invocation.settings.model, layers).report(options.name)
    return CommandResult(metrics, f"{joint_table(metrics)}\n\nreport: {report}")


def report_lines(invocation: Invocation, layers: list[int], name: str) -> list[str]:
    """The paths of the reports; with a single layer, first the top contexts of some features."""
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
