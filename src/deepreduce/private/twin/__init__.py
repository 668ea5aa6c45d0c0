"""The twin of the secure computation: the same program in plain integers.

`Twin` computes a program on values; given the client's shares that a secure run recorded it reproduces that run bit
by bit. `play` computes a program on two sets of shares in one process: the reference for what each party holds.
"""

from .play import Transcript, play
from .twin import Answers, Twin, compare

__all__ = ["Answers", "Transcript", "Twin", "compare", "play"]
