"""The command line: one thin file per command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import DeepReduceError, Interrupted, UsageError

_COMMANDS = {
    "profile": "count the ReLUs of a network, before and after a reduction",
    "train": "train the full-ReLU teacher",
    "reduce": "find the Pareto front of accuracy and ReLUs",
    "report": "write the HTML page and the plots of a run",
    "demo": "all of it on handwritten digits, in a few minutes",
    "env": "print what a bug report needs",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0, 1 if it failed or was stopped, 2 if it was called wrongly.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="deepreduce", description="Find out which ReLUs of a network matter, and remove the rest."
    )
    parser.add_argument("--version", action="version", version=f"deepreduce {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the command that was typed is imported, so that help and errors come at once.
    wanted = next((word for word in typed if not word.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == wanted:
            module = importlib.import_module(f".{name}", __name__)
            module.add_options(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(typed)
    try:
        return int(options.run(options))
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; Python would complain once more at exit
        return 1
    except DeepReduceError as error:
        print(f"deepreduce {options.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
