"""The commands that train or judge dictionaries as part of a language model, or give them away."""

import click

from nestcoder.invocation import Invocation
from nestcoder.options import device_option, dry_run_option, fresh_option, layers_option, name_option


@click.command()
@layers_option(required=True)
@device_option
@dry_run_option
@fresh_option
@name_option
@click.option("--as", "result", help="Name of the result  [default: NAME-finetuned].")
@click.pass_obj
def finetune(
    invocation: Invocation,
    *,
    layers: tuple[int, ...],
    device: str,
    dry_run: bool,
    fresh: bool,
    name: str,
    result: str | None,
) -> None:
    """Fine-tune trained transcoders inside the language model, all layers at once.

    On the KL divergence of the spliced model and the nested FVU, their gradients balanced. Contexts come from the
    cache's own training tokens. Ends with before and after on held-out rows.
    """
    from nestcoder.commands import finetune_commands

    chosen = list(dict.fromkeys(layers))
    if dry_run:
        shown = finetune_commands.plan_finetune(invocation, chosen, device, name=name, result=result)
    else:
        shown = finetune_commands.finetune(invocation, chosen, device, name=name, result=result, fresh=fresh)
    invocation.show(shown)
