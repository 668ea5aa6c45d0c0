"""Every script of `benchmarks/` finds what it imports: nothing else runs them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_script_can_be_imported() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    code = f"import importlib, sys; sys.path.insert(0, {str(FOLDER)!r}); [importlib.import_module(n) for n in {names}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert len(names) > 10 and done.returncode == 0, done.stderr
