"""What private inference costs."""

from .estimate import delphi_online_seconds

__all__ = ["delphi_online_seconds"]
