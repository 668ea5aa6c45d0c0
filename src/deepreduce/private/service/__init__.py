"""The two parties as programs: a server for several clients, a client, and the small messages between them."""

from .client import Client, Inference, Preparation, default_store
from .limits import ServerLimits
from .server import Server

__all__ = ["Client", "Inference", "Preparation", "Server", "ServerLimits", "default_store"]
