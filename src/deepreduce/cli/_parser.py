"""A parser whose errors have the four parts that all errors here have, in place of a page of usage."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from ..errors import UsageError, near_misses, problem

_KINDS = {"int": "write a whole number", "float": "write a number"}


class Parser(argparse.ArgumentParser):
    """Reads the command line.

    A reader of values (`type=`) says what is wrong by `argparse.ArgumentTypeError` with a text of the form
    "write it like 3x32x32, not '3x32'": what to do, and what came.

    Raises:
        UsageError: the command line is wrong.
    """

    def error(self, message: str) -> NoReturn:
        """Turn a message of argparse into ours."""
        raise UsageError(_explained(message, self.prog))

    def names(self) -> list[str]:
        """Return the long options, sorted."""
        return sorted({"--help", *re.findall(r"--[a-z][a-z-]*", self.format_usage())})

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Refuse arguments that have no place."""
        options = [word.split("=")[0] for word in unknown if word.startswith("-")]
        near = near_misses(options[0], self.names()) if options else ""
        raise UsageError(
            problem(
                "every argument must be one that the command has",
                got=f"{options[0] if options else unknown[0]!r}{near}",
                remedy=f"{self.prog} --help lists them",
            )
        )


def _explained(message: str, program: str) -> str:
    missing = re.fullmatch(r"the following arguments are required: (.+)", message)
    if missing:
        names = missing[1].split(", ")
        return problem(
            f"the command needs {' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)}",
            got=f"a call without {'them' if len(names) > 1 else 'it'}",
            remedy=f"{program} --help says what {'they are' if len(names) > 1 else 'it is'}",
        )
    of = re.fullmatch(r"argument ([^:]+): (.+)", message, re.DOTALL)
    where, text = (of[1], of[2]) if of else (None, message)
    choice = re.fullmatch(r"invalid choice: (.+) \(choose from (.+)\)", text, re.DOTALL)
    if choice:
        known = [word.strip("'") for word in choice[2].split(", ")]
        return problem(
            f"the value must be one of {', '.join(known)}",
            got=choice[1] + near_misses(choice[1].strip("'"), known),
            remedy="name one of them",
            where=where,
        )
    kind = re.fullmatch(r"invalid (\w+) value: (.+)", text, re.DOTALL)
    if kind and kind[1] in _KINDS:
        return problem("the value must fit the option", got=kind[2], remedy=_KINDS[kind[1]], where=where)
    ours = re.fullmatch(r"(.+), not (.+)", text, re.DOTALL)
    if ours:
        return problem("the value must fit the option", got=ours[2], remedy=ours[1], where=where)
    return problem(
        "the command line must be of the form that --help shows",
        got=text,
        remedy=f"{program} --help shows it",
        where=where,
    )
