"""The commands ``finetune`` and ``publish``: arguments, options and help."""

from pathlib import Path

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


@click.command()
@click.argument("exported", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@layers_option(required=True)
@name_option
@click.option("--to", required=True, metavar="hf:USER/REPOSITORY", help="Where to, on the Hugging Face Hub.")
@click.option("--license", "license_name", required=True, help="The licence to give it under, by the Hub's name: mit.")
@click.option("--base-model", help="The Hub name of the language model, for the card.")
@click.option("--private", is_flag=True, help="Make the repository private, where it is made.")
@click.option("--push", is_flag=True, help="Upload  [default: only say what would be uploaded].")
@click.pass_obj
def publish(
    invocation: Invocation,
    *,
    exported: Path | None,
    layers: tuple[int, ...],
    name: str,
    to: str,
    license_name: str,
    base_model: str | None,
    private: bool,
    push: bool,
) -> None:
    """Publish evaluated dictionaries on the Hugging Face Hub, with a card written from their metrics.

    EXPORTED is a folder that 'nestcoder export' wrote, uploaded beside them. Without --push nothing leaves this
    machine. The token is that of 'hf auth login' or HF_TOKEN; it is not kept. nestcoder.load_transcoder reads
    hf:USER/REPOSITORY/layer08 back; a cross-layer transcoder, published with all of its layers, is read by
    nestcoder.load_cross_layer from hf:USER/REPOSITORY/layers00-11.
    """
    from nestcoder.commands import publish_commands

    request = publish_commands.request_of(
        invocation,
        list(dict.fromkeys(layers)),
        name=name,
        to=to,
        license_name=license_name,
        base_model=base_model,
        exported=exported,
        private=private,
    )
    invocation.show(publish_commands.publish(request, really=push))
