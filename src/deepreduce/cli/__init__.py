"""The command line: one thin file per command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..errors import DeepReduceError, Interrupted, UsageError, near_misses, problem
from ._parser import Parser

_COMMANDS = {
    "profile": "count the ReLUs of a network, before and after a reduction",
    "train": "train the full-ReLU teacher",
    "reduce": "find the Pareto front of accuracy and ReLUs",
    "report": "write the HTML page and the plots of a run",
    "estimate": "say what a private inference will cost, before it is run",
    "export": "write a reduced network as a server's file and a clients' file",
    "serve": "run the server of private inference",
    "prepare": "run the offline phase of private inference ahead of time",
    "infer": "classify images privately",
    "demo": "all of it on handwritten digits, in a few minutes",
    "env": "print what a bug report needs",
}


_FOR_TRAINING = frozenset({"torch", "accelerate", "torch_pruning", "pyarrow", "sklearn", "filelock"})
"""Packages that an installation for serve, prepare and infer alone lacks, see requirements/party.txt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0, 1 if it failed or was stopped, 2 if it was called wrongly.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    # Only the command that was typed is imported, so that help and errors come at once.
    wanted = next((word for word in typed if not word.startswith("-")), None)
    try:
        options = _parse(typed, wanted)
    except SystemExit as end:  # the help or the version was asked for, and is printed
        return int(end.code or 0)
    except UsageError as error:
        print(f"deepreduce{f' {wanted}' if wanted in _COMMANDS else ''}: {error}", file=sys.stderr)
        return 2
    try:
        with _stopping_on_request(), _only_first_speaks():
            code = int(options.run(options))
            sys.stdout.flush()
            if "LOCAL_RANK" in os.environ:
                from ..training.distributed import part

                part()
            return code
    except KeyboardInterrupt:
        print(f"\nstopped{_kept(options)}", file=sys.stderr)
        if arguments is None:
            _end_at_once()
        return 1
    except BrokenPipeError:
        # The reader of our output went away; Python would write what is left once more at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _FOR_TRAINING:
            raise
        print(f"deepreduce {options.command}: {_only_a_party(options.command, package)}", file=sys.stderr)
        return 1
    except DeepReduceError as error:
        print(f"deepreduce {options.command}: {error}", file=sys.stderr)
        if isinstance(error, Interrupted) and arguments is None:
            signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # nothing is left to stop; an impatient second Ctrl-C is not news
        return 2 if isinstance(error, UsageError) else 1


def _only_a_party(command: str, package: str) -> str:
    return problem(
        f"{command} needs the package {package!r}",
        got="it is not installed: without it only serve, prepare, infer and env run",
        remedy="install deepreduce with all that it depends on: pip install '.[report,private]'",
        where=command,
    )


def _parse(typed: Sequence[str], wanted: str | None) -> argparse.Namespace:
    parser = Parser(
        prog="deepreduce",
        description="Find out which ReLUs of a network matter, and remove the rest.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"deepreduce {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if wanted is not None and wanted not in _COMMANDS:
        raise UsageError(
            problem(
                f"the command must be one of {', '.join(_COMMANDS)}",
                got=f"{wanted!r}{near_misses(wanted, list(_COMMANDS))}",
                remedy="deepreduce --help says what each does",
                where="COMMAND",
            )
        )
    asked = parser
    for name, summary in _COMMANDS.items():
        about = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=about, allow_abbrev=False)
        if name == wanted:
            module = importlib.import_module(f".{name}", __name__)
            module.add_options(command)
            command.set_defaults(run=module.run)
            asked = command
    if not typed:
        parser.print_help(sys.stderr)
        parser.exit(2)
    # A misspelt option is told before what is then missing.
    known = {*parser.names(), *asked.names()}
    before = itertools.takewhile(lambda word: word != "--", typed)  # what comes behind it is no option
    misspelt = [word for word in before if word.startswith("--") and word.split("=")[0] not in known]
    if misspelt:
        asked.refuse(misspelt, _having(misspelt[0].split("=")[0]) if wanted is not None else ())
    options, unknown = parser.parse_known_args(typed)
    if unknown:
        asked.refuse(unknown)
    return options


def _having(option: str) -> list[str]:
    """Return the commands that have an option."""
    found = []
    for name in _COMMANDS:
        parser = Parser(add_help=False)
        importlib.import_module(f".{name}", __name__).add_options(parser)
        if option in parser.names():
            found.append(name)
    return found


def _kept(options: argparse.Namespace) -> str:
    """Say what a command that trains has kept, where it was stopped outside of training; empty for the others."""
    if options.command not in ("train", "reduce", "demo") or getattr(options, "dry_run", False):
        return ""
    if not options.out.exists():
        return ": nothing is written yet, and the same command begins from the start"
    return f": what is finished is kept in {options.out}, and the same command continues it"


def _end_at_once() -> NoReturn:
    """End the process after a Ctrl-C outside of training, or a second one while workers stop, and the workers with it.

    Python would wait for them, and might end with another exit code than ours.
    """
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def _stopping_on_request() -> Iterator[None]:
    """Take SIGTERM, which batch systems send, for Ctrl-C: the run stops in order and can be continued."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _only_first_speaks() -> Iterator[None]:
    """Under `torchrun` let the first process alone print results."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
