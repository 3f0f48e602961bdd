"""The options that every command takes: `--quiet`, `--log-file` and `--version`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jigsaw_forecast import __version__, log
from jigsaw_forecast.parallel.launch import distributed_environment


@dataclass
class CommonOptions:
    """What was given of them so far, before and after the command's name.

    Attributes:
        arguments: The whole command line, which launched ranks run again.
        quiet: Whether the terminal shows warnings and errors only.
        log_file: File that log lines are also written to.
    """

    arguments: tuple[str, ...] = ()
    quiet: bool = False
    log_file: Path | None = None


def show_version(is_wanted: bool) -> None:
    """Prints the version and ends the command where `--version` was given."""
    if is_wanted:
        typer.echo(f"jigsaw-forecast {__version__}")
        raise typer.Exit


Quiet = Annotated[bool, typer.Option("--quiet", help="Show warnings and errors only.")]
LogFile = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="PATH", help="Also write plain log lines to this file."),
]
Version = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=show_version, help="Print the version."),
]


def common_options(
    context: typer.Context, quiet: Quiet = False, log_file: LogFile = None, version: Version = False
) -> None:
    """Takes the common options where they stand and sets up the log with all given so far."""
    given: CommonOptions = context.ensure_object(CommonOptions)
    given.quiet |= quiet
    given.log_file = log_file or given.log_file
    environment = distributed_environment()
    log.configure(
        quiet=given.quiet,
        log_file=given.log_file,
        rank=environment.rank if environment else 0,
        num_ranks=environment.world_size if environment else 1,
    )


def command_line(context: typer.Context) -> list[str]:
    """The arguments that this command was called with, the program's name left out."""
    return list(context.ensure_object(CommonOptions).arguments)


def with_common_options(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """A command with the common options added to its own, which typer reads off the signature."""
    signature = inspect.signature(command)
    own, common = signature.parameters, inspect.signature(common_options).parameters
    added = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in common.items()
        if name not in own
    ]

    @functools.wraps(command)
    def run(**values: Any) -> int | None:
        common_options(**{name: values[name] for name in common})
        return command(**{name: values[name] for name in own})

    run.__signature__ = signature.replace(parameters=[*own.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**common_options.__annotations__, **command.__annotations__}
    return run
