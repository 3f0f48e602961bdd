"""The command line `jigsaw-forecast`: its commands, its errors and its exit codes.

Exit codes: 0 done, 2 wrong input or refused, 3 stopped by a fault or a signal, 1 a bug.
"""

import inspect as introspection
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

import typer

from jigsaw_forecast.cli import (
    bench,
    check,
    checkpoint,
    climatology,
    data,
    inspect,
    plan,
    plot,
    run,
    score,
    selfcheck,
    train,
)
from jigsaw_forecast.cli.options import CommonOptions, common_options, with_common_options
from jigsaw_forecast.errors import ForecastError, StoppedError
from jigsaw_forecast.parallel import launch

EXIT_BUG, EXIT_REFUSED, EXIT_STOPPED = 1, 2, 3
# A rank whose peer dies sees a broken connection at once; the agent needs 0.1 s to see the death
# itself and to stop the others, whose tracebacks would only hide the cause.
PEER_FAILURE_DELAY_S = 0.5


class Terminated(StoppedError):
    """SIGTERM came while nothing had arranged to finish its work first."""


def build_app() -> typer.Typer:
    """The Typer app with all commands."""
    app = _group("Runs and trains WeatherMixer, a global weather model cut over a group of ranks.")
    _add(app, "run", run.run)
    _add(app, "train", train.train)
    _add(app, "check", check.check)
    _add(app, "plan", plan.plan)
    _add(app, "bench", bench.bench)
    _add(app, "inspect", inspect.inspect)
    _add(app, "plot", plot.plot)
    _add(app, "score", score.score)
    _add(app, "selfcheck", selfcheck.selfcheck)
    data_group = _group("Makes and prepares data.")
    _add(data_group, "nature-run", data.nature_run)
    _add(data_group, "convert", data.convert)
    _add(data_group, "statistics", data.statistics)
    _add(data_group, "climatology", climatology.climatology)
    app.add_typer(data_group, name="data")
    checkpoint_group = _group("Makes and checks checkpoints.")
    _add(checkpoint_group, "new", checkpoint.new)
    _add(checkpoint_group, "export", checkpoint.export)
    _add(checkpoint_group, "verify", checkpoint.verify)
    app.add_typer(checkpoint_group, name="checkpoint")
    return app


def _group(summary: str) -> typer.Typer:
    # plain help, which also saves the import of rich
    group = typer.Typer(
        help=summary,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    group.callback()(common_options)
    return group


def _add(group: typer.Typer, name: str, command: Callable[..., int | None]) -> None:
    # all of the first line, which would be cut to the width of a column
    summary = (introspection.getdoc(command) or "").partition("\n")[0]
    group.command(name=name, short_help=summary)(with_common_options(command))


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors become one message on stderr.

    Args:
        arguments: The command line without the program's name; by default the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # torch, and the ranks launched here, take large tensors in huge pages: otherwise first touching
    # them takes longer than a small model's step at 0.25 degrees
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        result = build_app()(
            args=arguments,
            prog_name="jigsaw-forecast",
            standalone_mode=False,
            obj=CommonOptions(arguments=tuple(arguments)),
        )
    except typer.TyperException as error:
        return _fail(_describe_usage_error(error), EXIT_REFUSED)
    except ForecastError as error:
        return _fail(str(error), EXIT_REFUSED)
    except Terminated as error:
        # the launcher, which was told to stop or stops its ranks, is the one to say so
        return EXIT_STOPPED if launch.launched_here() else _fail(_with_cause(error), EXIT_STOPPED)
    except StoppedError as error:
        return _fail(str(error), EXIT_STOPPED)
    except (KeyboardInterrupt, typer.Abort):
        if launch.launched_here():
            return EXIT_STOPPED
        return _fail("stopped by SIGINT", EXIT_STOPPED)
    except Exception:  # noqa: BLE001  the outermost place: shown whole, by one rank only
        return _fail_with_traceback()
    finally:
        signal.signal(signal.SIGTERM, previous)
    return result if isinstance(result, int) else 0


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated(f"stopped by {signal.Signals(number).name}")


def _with_cause(error: Terminated) -> str:
    """Why a launcher stops this rank, where another rank's end is the cause."""
    ended = launch.find_ended_peer()
    return f"{ended}; {error}" if ended else str(error)


def _fail(message: str, exit_code: int) -> int:
    if launch.claim_failure(exit_code, message):
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    return exit_code


def _fail_with_traceback() -> int:
    report = traceback.format_exc()
    if launch.launched_here():
        try:
            time.sleep(PEER_FAILURE_DELAY_S)
        except (Terminated, KeyboardInterrupt):
            return EXIT_STOPPED
    if launch.claim_failure(EXIT_BUG, report.rstrip().rpartition("\n")[2]):
        sys.stderr.write(report)
        sys.stderr.flush()
    return EXIT_BUG


# Of the library that reads the options, in the words of this one.
_PLAIN_WORDS = (
    (r"Input should be a valid integer(, [^;.]*)?", "expected a whole number"),
    (r"Input should be a valid number(, [^;.]*)?", "expected a number"),
    (r"Input should be (greater|less)", r"expected a number \1"),
)


def _describe_usage_error(error: typer.TyperException) -> str:
    """`missing option '--init'; see jigsaw-forecast run --help`."""
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    for words, plain in _PLAIN_WORDS:
        message = re.sub(words, plain, message)
    message = message[:1].lower() + message[1:].rstrip(".").replace("'. Did", "'; did")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "jigsaw-forecast"
    return f"{message}{'' if message.endswith('?') else ';'} see {command} --help"


if __name__ == "__main__":
    sys.exit(main())
