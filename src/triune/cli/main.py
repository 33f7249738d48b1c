"""The table of commands, and what an error looks like to a person.

Exit codes: 0 done, 1 a check failed, 2 the user's mistake or the system's refusal, 3 interrupted and resumable, 70 our bug.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "demo": ("triune.cli.demo:demo", "Merge three real specialists of a small model and compare the answers."),
    "merge": ("triune.cli.merge:merge", "Merge models into a new folder."),
    "train": ("triune.cli.train:train", "Train specialists and data mixtures by preference optimisation."),
    "align": ("triune.cli.align:align", "Run a whole experiment: mix data or merge models, and compare."),
    "data": ("triune.cli.data:app", "Check preference pairs, and prepare them for training."),
    "mix": ("triune.cli.mix:mix", "Choose preference pairs for a balanced data mixture."),
    "plan": ("triune.cli.plan:plan", "Check a merge and tell what it will cost, without reading a weight."),
    "verify": ("triune.cli.verify:verify", "Check that a merged folder is what its lock file says."),
    "diagnose": (
        "triune.cli.diagnose:diagnose",
        "Look at what the experts changed, and what merging would make of it.",
    ),
    "eval": ("triune.cli.evaluate:evaluate", "Measure models on benchmarks of helpfulness, honesty and harmlessness."),
    "bench": ("triune.cli.bench:bench", "Measure a whole suite of models, choose settings of merges, and compare."),
    "judge": ("triune.cli.judge:judge", "Let a language model or a guard score logged answers."),
    "leaderboard": ("triune.cli.leaderboard:leaderboard", "Compare the results of models side by side."),
    "report": ("triune.cli.report:report", "Make a page of merges, measurements and trainings, with figures."),
    "studio": ("triune.cli.studio:studio", "Move between specialists on a local page and read what the merge answers."),
    "methods": ("triune.cli.methods:methods", "List the merge methods, or show one's reference page."),
}

REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EIO, errno.EMFILE, errno.ENAMETOOLONG, errno.ELOOP),
}
"""What a system answers to a program that has done nothing wrong."""


def load(name: str) -> Any:
    """What is behind a command: a function, or a typer application with commands of its own.

    Its file is imported only when the command is used.
    """
    module, attribute = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(module), attribute)


def build() -> Any:
    """The typer application. Commands load lazily, so that ``triune --help`` needs neither torch nor pydantic."""
    import typer
    from typer.core import TyperGroup

    from triune.errors import Interrupted

    class Lazy(TyperGroup):
        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:  # typer would leave without a word
                raise Interrupted("Stopped. Run the same command again to continue.") from None
            except BrokenPipeError:  # the reader has seen enough, which typer would call a failure
                _leave(0)

        def list_commands(self, ctx: Any) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in COMMANDS:
                return None
            asked_for_list = ctx.invoked_subcommand is None and "--help" in sys.argv[1:2]
            found = _stand_in if asked_for_list else load(cmd_name)
            if not isinstance(found, typer.Typer):
                one = typer.Typer(add_completion=False, rich_markup_mode=None)
                one.command(cmd_name, help=None if found is not _stand_in else COMMANDS[cmd_name][1])(found)
                found = one
            command = typer.main.get_command(found)
            command.short_help = COMMANDS[cmd_name][1]
            return command

    app = typer.Typer(
        cls=Lazy,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Merge helpful, honest and harmless specialists into one balanced language model.",
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            from triune import __version__

            typer.echo(f"triune {__version__}")
            raise typer.Exit

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=show_version, help="Print the version and leave."
        ),
    ) -> None:
        pass

    return app


def _stand_in() -> None:
    """Shown in the list of commands only."""


def run() -> None:
    """Entry point of the ``triune`` program."""
    from triune.errors import CheckFailed, Interrupted, UserError

    # Python has none where who started it had closed them, as daemons do.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    try:
        try:
            build()()
        finally:
            sys.stdout.flush()  # here, where it is told if it fails
    except CheckFailed as error:
        _say(str(error))
        sys.exit(1)
    except UserError as error:
        _say(str(error))
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as error:
        _say(str(error) or "Stopped.")
        sys.exit(3)
    except BrokenPipeError:
        _leave(0)
    except OSError as error:
        if error.errno not in REFUSALS:
            _report_bug()
        _say(f"The system refused: {error}. Remove the cause and run the same command again.")
        _leave(2)
    except Exception:
        _report_bug()


def _leave(code: int) -> NoReturn:
    """Python would write again what could not be written, and exit with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _report_bug() -> NoReturn:
    """Of the exception at hand."""
    import traceback

    from triune import __version__

    traceback.print_exc()
    _say(f"This is a bug in triune {__version__}, not a mistake of yours. Please report the lines above.")
    sys.exit(70)


def _say(message: str) -> None:
    print(f"triune: {message}", file=sys.stderr)
