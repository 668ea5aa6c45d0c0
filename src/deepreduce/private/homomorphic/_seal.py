"""The one place that imports SEAL, so that its absence names the extra that mends it."""

from __future__ import annotations

from ...errors import missing_extra

try:
    import seal  # type: ignore[import-not-found, unused-ignore] # its stub lies where mypy does not look
except ImportError as missing:
    raise missing_extra("seal-python", "private", purpose="private inference") from missing

__all__ = ["seal"]
