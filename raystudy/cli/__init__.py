"""The command line: parse, call, print.

Exit codes: 0 done; 1 the study ran but failed; 2 bad input, nothing was started; 3 not found or not reachable; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import click

from raystudy import __version__
from raystudy.cli import cache, cluster, distance, files, findings, pretrain, report, results, studies, submit
from raystudy.errors import RaystudyError
from raystudy.garbage import collect_rarely


class _Ordered(click.Group):
    """Lists commands in the order of a user's day, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="raystudy")
def cli() -> None:
    """Hyperparameter studies for fine-tuning vision models: the best configuration, and which factors matter."""


for command in (
    studies.demo,
    files.init,
    files.validate,
    files.schema,
    studies.run,
    submit.submit,
    results.list_,
    results.status,
    studies.watch,
    studies.logs,
    studies.stop,
    studies.resume,
    results.best,
    results.trials,
    findings.importance,
    report.report,
    results.export,
    results.verify,
    results.ui,
    pretrain.pretrain,
    distance.distance,
    cache.cache,
    cluster.head,
    cluster.keys,
    cluster.connect,
    cluster.spot_watch,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors are words on stderr, `--debug` anywhere shows the traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    collect_rarely()
    debug = "--debug" in arguments
    sys.exit(_call([argument for argument in arguments if argument != "--debug"], debug=debug))


def _call(arguments: Sequence[str], *, debug: bool) -> int:
    try:
        result = cli.main(args=list(arguments), prog_name="raystudy", standalone_mode=False)
    except RaystudyError as error:
        return _failed(f"error: {error}", error.exit_code, debug=debug)
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # whatever happens, the user gets a sentence
        return _failed(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1, debug=debug)
    return result if isinstance(result, int) else 0


def _failed(text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(text, err=True)
    return code
