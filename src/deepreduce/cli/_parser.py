"""A parser whose errors have the four parts that all errors here have, in place of a page of usage."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
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
        missing = re.fullmatch(r"the following arguments are required: (.+)", message)
        raise UsageError(self._missing(missing[1].split(", ")) if missing else _explained(message, self.prog))

    def names(self) -> list[str]:
        """Return the long options, sorted."""
        return sorted({"--help", *re.findall(r"--[a-z][a-z-]*", self.format_usage())})

    def refuse(self, unknown: list[str], elsewhere: Sequence[str] = ()) -> NoReturn:
        """Refuse arguments that have no place.

        Args:
            unknown: as they were typed.
            elsewhere: commands that have the first of them as an option.
        """
        options = [word.split("=")[0] for word in unknown if word.startswith("-")]
        first = options[0] if options else unknown[0]
        near = near_misses(first, self.names()) if options and not elsewhere else ""
        have = f"deepreduce {_joined(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} {first}; "
        raise UsageError(
            problem(
                "every argument must be one that the command has",
                got=f"{first!r}{near}",
                remedy=f"{have if elsewhere else ''}{self.prog} --help lists its own",
                where=first,
            )
        )

    def _missing(self, names: Sequence[str]) -> str:
        """Say which arguments are missing, and how they look."""
        known = {"/".join(each.option_strings) or str(each.metavar or each.dest): each for each in self._actions}
        shown = []
        for name in names:
            action = known[name]
            example = re.search(r"such as (\S+)", action.help or "")
            value = example[1] if example else str(action.metavar or "")
            shown.append(f"{name} {value}" if action.option_strings else name)
        return problem(
            f"the command needs {_joined(names)}",
            got=f"a call without {'them' if len(names) > 1 else 'it'}",
            remedy=f"give {_joined(shown)}; {self.prog} --help says more",
            where=_joined(names),
        )


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _explained(message: str, program: str) -> str:
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
