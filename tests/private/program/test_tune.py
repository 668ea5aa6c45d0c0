"""Merging for the sake of the rings, where layers may be coarser and where they may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deepreduce.networks import NetworkSpec
from deepreduce.private.program import FormatSettings, build, make_program
from deepreduce.reduction import Candidate, build_candidate, make_base

from .small import photographs, settle


def test_it_is_tried_anew_where_coarser_layers_were_too_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan that is refused for its accuracy had no need of merging; the next one may."""
    asked: list[bool] = []
    measured: list[float] = []
    own_tune, own_plan, own_measure = build.tune, build.plan, build._measure

    def tune(*args: Any, trim: bool) -> bool:
        asked.append(trim)
        return own_tune(*args, trim=trim)

    def plan(*args: Any, trim: bool) -> Any:
        made = own_plan(*args, trim=trim)
        return replace(made, trimmed=1) if trim else made

    def measure(*args: Any) -> Any:
        found = own_measure(*args)
        measured.append(found.rms_error)
        return found if len(measured) > 2 else replace(found, rms_error=1e9)

    for name, function in (("tune", tune), ("plan", plan), ("_measure", measure)):
        monkeypatch.setattr(build, name, function)
    base = make_base(NetworkSpec("resnet18", (3, 16, 16), 10, 0.125))
    settle(base.network, photographs(64, 16))
    network = build_candidate(base, Candidate(("S3", "S4"), thin=True, bypass=True))
    make_program(network, photographs(32, 16), settings=FormatSettings(tolerance=0.01))
    assert asked == [True, False] and len(measured) == 3  # with signs as they are, and exact
