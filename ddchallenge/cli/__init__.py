"""The command line: parse, call, render. The only package that exits or prints.

A command is a function in a module of its own or of its family, and a line in the list below.
``parameters`` has the options that several take, ``steps`` what several do, ``output`` how they
speak. ``run`` is ``sample`` and ``score`` in one, and calls their functions.
"""

from __future__ import annotations

import errno
import io
import os
import sys

import click

import ddchallenge
from ddchallenge.cli import (
    calibrate,
    catalogue,
    data,
    doctor,
    package,
    reproduce,
    run,
    sample,
    score,
    tensors,
    verify,
)
from ddchallenge.cli.output import echo, print_json, printed_json
from ddchallenge.errors import DDChallengeError
from ddchallenge.interrupts import as_interrupt
from ddchallenge.jsonio import printable

__all__ = ["main"]

_INTERRUPTED = 130
_ODD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EINVAL)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ddchallenge.__version__, prog_name="ddchallenge")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Tracebacks for errors, anywhere on the line."
)
def commands() -> None:
    """Ten minutes of any image generator, scored as a training set.

    `ddchallenge run --track generative --dataset digits` does everything once.
    """


for _command in (
    run.run,
    sample.sample,
    score.score,
    verify.verify,
    reproduce.reproduce,
    tensors.import_command,
    tensors.export_command,
    calibrate.calibrate,
    catalogue.submissions,
    catalogue.new,
    catalogue.leaderboard,
    package.package,
    package.check_package,
    doctor.doctor,
    data.data,
):
    commands.add_command(_command)


def main() -> None:
    """Entry point of ``ddchallenge``; exit status 0, 1 (a run failed) or 2 (a wrong request)."""
    as_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± gets a ?
    arguments = sys.argv[1:]
    printed_json.clear()
    # People add --debug at the end of a line that failed.
    debug = "--debug" in arguments or bool(os.environ.get("DDCHALLENGE_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        # What it returns is the status of a command that ended itself, `doctor` for instance.
        status = commands.main(arguments, prog_name="ddchallenge", standalone_mode=False)
        if status:
            sys.exit(status)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError" and error.ctx:  # click 8.2 and later
            echo(error.ctx.get_help(), err=True)
            sys.exit(2)
        _fail(error.format_message(), error.exit_code, _usage(error))
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, _usage(error))
    except (KeyboardInterrupt, click.Abort):
        _fail("Interrupted.", _INTERRUPTED)
    except DDChallengeError as error:
        if debug:
            raise
        _fail(str(error), error.exit_status)
    except OSError as error:
        if debug:
            raise
        if error.errno in _ODD_PATH:
            _fail(f"{str(error.filename)[:200]} is no usable path: {error.strerror}.", 2)
        _fail(f"{error.strerror or error}: {str(error.filename or '')[:200]}", 1)
    except Exception as error:
        if debug:
            raise
        _fail(
            f"An error of the harness itself: {type(error).__name__}: {error}\n"
            "Repeat the command with --debug and report what it prints.",
            1,
        )


def _fail(message: str, status: int, usage: str = "") -> None:
    message = printable(message)  # it may quote a stranger
    if "--json" in sys.argv and not printed_json:
        print_json({"error": message, "exit_status": status})
    echo(f"{usage}{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    sys.exit(status)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.get_usage()}\n" if context is not None else ""
