"""Private inference between two parties, and what it costs."""

from .estimate import delphi_online_seconds

__all__ = ["delphi_online_seconds"]
