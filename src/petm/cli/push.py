"""``petm push``: a bundle to the Hugging Face Hub."""

from pathlib import Path

import click

from petm.cli import options


@click.command(
    epilog="Example: petm push runs/demo/grader.petm my-name/digits-second-opinion",
    short_help="Upload a bundle to the Hugging Face Hub.",
)
@click.argument("bundle", type=options.PATH)
@click.argument("repository")
@click.option("--public", is_flag=True, help="Make a new repository public. Absent: private.")
@options.as_json
def push(bundle: Path, repository: str, public: bool, as_json: bool) -> None:
    """Upload a bundle, its model card included, to a model repository on the Hugging Face Hub.

    The bundle is checked first, and no other files in its folder are uploaded. Its manifest names data and weights as
    they were named in the fit: see petm inspect.
    """
    from petm.grading.hub import push_to_hub

    address = push_to_hub(bundle, repository, public=public)
    if as_json:
        options.print_json({"bundle": str(bundle), "repository": repository, "address": address})
    else:
        click.echo(address)
