"""The command line. Heavy imports are in the verbs, so help and wrong arguments are answered fast."""

import sys

import click

from petm._internal.texts import visible
from petm.cli import options
from petm.cli.calibrate import calibrate
from petm.cli.demo import demo
from petm.cli.doctor import doctor
from petm.cli.export import export
from petm.cli.fit import fit
from petm.cli.grade import grade
from petm.cli.inspect import inspect
from petm.cli.learn import learn
from petm.cli.monitor import monitor
from petm.cli.next_labels import next_labels
from petm.cli.process import keep_large_blocks
from petm.cli.push import push
from petm.cli.recalibrate import recalibrate
from petm.cli.reproduce import reproduce
from petm.cli.serve import serve
from petm.cli.suspects import suspects
from petm.errors import PetmError

INTERRUPTED = 130


class _Verbs(click.Group):
    """The verbs; a `PetmError` is one line that names the options of the running verb, and exit 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Runs a verb."""
        try:
            return super().invoke(ctx)
        except PetmError as error:
            told = options.as_options(str(error), self.commands[str(ctx.invoked_subcommand)])
            raise click.ClickException(visible(told)) from error
        except click.UsageError as error:
            if not isinstance(error.__cause__, PetmError) or error.ctx is None:
                raise
            # of an argument that the library has checked
            raise click.UsageError(options.as_options(error.message, error.ctx.command), error.ctx) from error


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='\b\nCompletion in bash: eval "$(_PETM_COMPLETE=bash_source petm)"\n'
    "In zsh and fish: zsh_source and fish_source in its place.",
)
@click.version_option(package_name="petm")
def petm() -> None:
    """A second opinion for every prediction of a trained classifier."""


for verb in (
    demo,
    fit,
    calibrate,
    learn,
    recalibrate,
    grade,
    inspect,
    monitor,
    suspects,
    next_labels,
    serve,
    export,
    push,
    reproduce,
    doctor,
):
    petm.add_command(verb)


def main() -> None:
    """Runs the command line; an error exits with its code, an interrupt with 130."""
    keep_large_blocks()
    options.show_own_warnings()
    try:
        petm(prog_name="petm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. To continue, run the same command, with --resume where it has that option.", err=True)
        sys.exit(INTERRUPTED)
