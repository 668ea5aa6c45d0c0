"""Where results files go, and on what a benchmark says that it ran."""

from __future__ import annotations

from pathlib import Path

from machine import device_of, results_path


def test_results_are_named_by_benchmark_device_and_date(tmp_path: Path) -> None:
    path = results_path(tmp_path / "new", "private-narrow", "AMD EPYC (TM)", date="2026-01-02", suffix="-k30")
    assert path == tmp_path / "new" / "private-narrow-amd-epyc-tm-2026-01-02-k30.json" and path.parent.is_dir()


def test_an_accelerator_comes_before_the_processor() -> None:
    assert device_of({"devices": ["NVIDIA H200", "NVIDIA H200"], "processor": "x"}) == "NVIDIA H200"
    assert device_of({"devices": [], "processor": "x"}) == "x"
