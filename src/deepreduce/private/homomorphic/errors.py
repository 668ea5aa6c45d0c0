"""The errors of the homomorphic linear layers; all have the four parts of `deepreduce.errors.problem`."""

from __future__ import annotations

from ...errors import DeepReduceError


class HomomorphicError(DeepReduceError):
    """Base of what can go wrong in a homomorphic linear layer."""


class LayerError(HomomorphicError):
    """A layer has no meaning, or does not fit into one polynomial."""


class ParameterError(HomomorphicError):
    """No parameters carry the ring, the weights and the flooding of a layer."""


class MessageError(HomomorphicError):
    """A message of the other party is not what the protocol says; nothing of it was used."""


class WeightsError(HomomorphicError):
    """Prepared weights do not belong to this layer, or their file is damaged."""


class PoolError(HomomorphicError):
    """The pool was closed, a worker process died or overran its deadline, or the system gives no more threads."""
