"""States that serve one step of a protocol and no second one.

A protocol step is a function of a state and a message. Were it called twice with one state, a pseudorandom position
would be used twice, and the exclusive or of the two messages would give the difference of the secrets. So every state
is spent by the step that reads it, and the step returns the next one.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

from deepreduce.errors import problem

from ._errors import TransferError


class SingleUse:
    """Base of the states: `spend` succeeds once, in the process that made the state, and never again.

    A state can be neither copied nor pickled, and a forked child cannot spend its parent's. Its printed form names
    the class and no secret. Not covered: a snapshot of the whole machine that is resumed twice.
    """

    __slots__ = ("_lock", "_process", "_spent")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._spent = False

    def check_unspent(self) -> None:
        """Raise TransferError if the state was spent or belongs to another process; spend nothing."""
        name = type(self).__name__
        if self._process != os.getpid():
            raise TransferError(
                problem(
                    f"a {name} belongs to the process that made it",
                    got="another process, forked from it",
                    remedy="run the set-up in the process that runs the extension",
                )
            )
        if self._spent:
            raise TransferError(
                problem(
                    f"a {name} serves one step only, because a second use would reveal secrets",
                    got="a state that was used before",
                    remedy="go on with the state that the step returned, or run a new set-up",
                )
            )

    def spend(self) -> None:
        """Mark the state as used; raise TransferError if it was before, or if it belongs to another process."""
        self.check_unspent()  # a forked child must not wait for a lock that a thread of its parent held
        with self._lock:
            self.check_unspent()
            self._spent = True

    def _refuse_copy(self) -> NoReturn:
        raise TransferError(
            problem(
                f"a {type(self).__name__} must not be copied or stored",
                got="an attempt to copy or pickle it",
                remedy="store the labels that a batch gave, not the state that made them",
            )
        )

    def __copy__(self) -> NoReturn:
        self._refuse_copy()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self._refuse_copy()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self._refuse_copy()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{', spent' if self._spent else ''}>"
