"""The errors that a user of DeepReduce can meet.

Every message has four parts: what must hold, what came instead, what to do, and where it happened.
`problem` puts them together, so that no part is forgotten.
"""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # ECMA-48 control sequences: colours, cursor, erase
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # strings: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]",  # every other escape
    re.DOTALL,
)


class DeepReduceError(Exception):
    """Base of every error that DeepReduce raises on purpose; the command line prints it without a traceback."""


class UsageError(DeepReduceError):
    """The call itself is wrong: an unknown name, an option out of range. The command line exits with 2."""


class NetworkError(DeepReduceError):
    """A network cannot be built, traced, or reduced as asked."""


class DataError(DeepReduceError):
    """Images or labels are not what they must be."""


class TrainingError(DeepReduceError):
    """A training job failed; the other jobs of the run are not touched by it."""


class RunError(DeepReduceError):
    """A run folder does not fit the command, or a file in it is damaged."""


class RecipeError(DeepReduceError):
    """A saved network cannot be trusted or cannot be rebuilt."""


class MissingExtraError(DeepReduceError):
    """An optional package is needed and not installed."""


class Interrupted(DeepReduceError):  # noqa: N818 - it is not a failure: the run continues where it stopped
    """The run was stopped on request; the same command continues it."""


def problem(must: str, *, got: object, remedy: str, where: object = None) -> str:
    """Compose the message of an error.

    Args:
        must: the invariant, as a sentence without its full stop ("the budget must be at least 1").
        got: what came instead.
        remedy: what the user can do, as a sentence without its full stop.
        where: file, row, line of source, or option; left out when the call itself is the place.

    Returns:
        Up to four short sentences on one line. Whatever a terminal would obey or not show is written out: a file or a
        peer may have written it.
    """
    place = f" Where: {where}." if where is not None else ""
    begins = must.split(" ", 1)[0]
    if begins.isalpha():  # and no name such as package.module:function
        must = must[0].upper() + must[1:]
    return _shown(f"{must}. Got: {got}. Do: {remedy}.{place}")


def _shown(text: str) -> str:
    """Return text with line ends as spaces, and every other character that is not printable as Python writes it."""
    kept = (c if c.isprintable() else " " if c in "\r\n\t" else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)


def missing_extra(package: str, extra: str, *, purpose: str) -> MissingExtraError:
    """Build the error for an optional package that is not installed."""
    return MissingExtraError(
        problem(
            f"{purpose} needs the package {package!r}",
            got="it is not installed",
            remedy=f"pip install 'deepreduce[{extra}]'",
        )
    )


def near_misses(word: str, known: list[str]) -> str:
    """Return ' (did you mean a, b?)' for the names in `known` closest to `word`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def printable(text: str) -> str:
    """Return `text` as one line without control characters, terminal escapes, or invisible characters."""
    plain = _ESCAPES.sub("", text)
    kept = (c if c.isprintable() else " " if c.isspace() else "" for c in plain)
    return " ".join("".join(kept).split())
