"""What newer networks are made of, made into what runs privately: other activations, gates and norms."""

from .exchanging import can_exchange, exchange_activations
from .gates import fix_gates
from .norms import exchange_norms

__all__ = ["can_exchange", "exchange_activations", "exchange_norms", "fix_gates"]
