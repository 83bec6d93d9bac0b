"""The ``finetune`` command: its plan, or the comparison of before and after."""

from nestcoder.invocation import CommandResult, Invocation
from nestcoder.progress import shown_progress
from nestcoder.stages.model import finetune_request, run_finetune
from nestcoder.text import as_lines


def finetune(
    invocation: Invocation, layers: list[int], device: str, *, name: str, result: str | None, fresh: bool
) -> CommandResult:
    """Fine-tune, and compare before and after on held-out rows."""
    from finetune.compare import comparison_table

    settings = invocation.settings
    request = finetune_request(settings, layers, name=name, result=result, device=device)
    with shown_progress() as progress:
        metrics = run_finetune(
            settings, layers, name=name, result=result, device=device, fresh=fresh, progress=progress
        )
    made = [f"fine-tuned: {folder}" for folder in dict.fromkeys(request.results().values())]
    return CommandResult(metrics, "\n".join([comparison_table(metrics), "", *made]))


def plan_finetune(
    invocation: Invocation, layers: list[int], device: str, *, name: str, result: str | None
) -> CommandResult:
    """Steps, tokens and minutes of a fine-tuning; nothing is written."""
    from finetune.run import plan_finetune as plan

    request = finetune_request(invocation.settings, layers, name=name, result=result, device=device)
    with shown_progress() as progress:
        found = plan(request, progress=progress)
    return CommandResult(found, as_lines(found))
