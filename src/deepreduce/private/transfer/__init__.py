"""Oblivious transfer: how the evaluator gets the labels of its input bits and the garbler does not learn the bits.

    messages.py    the four messages and their exact sizes
    base.py        128 base transfers on Ristretto255
    trees.py       seeds: all leaves for the client, all but one per tree for the server
    extension.py   correlated transfers by the million: the transfers are the labels
    _backends.py   the compiled kernel and its numpy twin

    client                                            server
    setup, offer = offer_setup(session)        →
                                               ←      setup, chosen = choose_setup(session, new_delta(), offer)
    state, sums = plant_setup(setup, chosen)   →      state = finish_setup(setup, sums)

    state, corrections, labels = extend_receiver(state, bits)
                                               →      state, zeros = extend_sender(state, corrections, len(bits))

The last line as often as wanted; labels = zeros xor bits delta.
"""

from ._backends import available_backends, default_backend
from ._errors import MAX_BATCH, SESSION_BYTES, TransferError
from .base import (
    BaseReceiverState,
    BaseSenderState,
    choose_base,
    finish_base_receiver,
    finish_base_sender,
    new_session,
    offer_base,
)
from .extension import (
    DEFAULT_FIELD_BITS,
    ReceiverSetup,
    ReceiverState,
    SenderSetup,
    SenderState,
    choose_setup,
    extend_receiver,
    extend_sender,
    finish_setup,
    new_delta,
    offer_setup,
    plant_setup,
)
from .messages import (
    MAX_POSITION,
    BaseChoices,
    BaseOffer,
    Corrections,
    TreeSums,
    base_choices_bytes,
    base_offer_bytes,
    corrections_bytes,
    tree_sums_bytes,
)

__all__ = [
    "DEFAULT_FIELD_BITS",
    "MAX_BATCH",
    "MAX_POSITION",
    "SESSION_BYTES",
    "BaseChoices",
    "BaseOffer",
    "BaseReceiverState",
    "BaseSenderState",
    "Corrections",
    "ReceiverSetup",
    "ReceiverState",
    "SenderSetup",
    "SenderState",
    "TransferError",
    "TreeSums",
    "available_backends",
    "base_choices_bytes",
    "base_offer_bytes",
    "choose_base",
    "choose_setup",
    "corrections_bytes",
    "default_backend",
    "extend_receiver",
    "extend_sender",
    "finish_base_receiver",
    "finish_base_sender",
    "finish_setup",
    "new_delta",
    "new_session",
    "offer_base",
    "offer_setup",
    "plant_setup",
    "tree_sums_bytes",
]
