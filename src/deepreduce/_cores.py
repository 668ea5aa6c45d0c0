"""How many processor cores there are for this process."""

from __future__ import annotations


def available_cores() -> int:
    """Return the number of processor cores that this process may use, at least 1.

    Of the cores that it may run on, as many as a container's quota of processor time (cgroups) pays for, rounded up; at
    most `LOKY_MAX_CPU_COUNT`, where that is set.
    """
    import joblib  # here: a tenth of a second that most commands need not wait for

    return int(joblib.cpu_count())
