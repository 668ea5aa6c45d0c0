"""The package from outside: what it offers, and that looking at it costs nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deepreduce
import deepreduce.training
from deepreduce.cli import _FOR_TRAINING


def loaded_after(code: str) -> set[str]:
    """Run code in a fresh interpreter; return the modules it has loaded."""
    program = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "numpy", "accelerate", "rich", "plotly", "matplotlib", "sklearn", "ray", "torch_pruning", "pyarrow"}


@pytest.mark.parametrize(
    "code",
    [
        "import deepreduce",
        "from deepreduce.cli import main; main(['--help'])",
        "from deepreduce.cli import main; assert main(['reduse']) == 2",
    ],
)
def test_example_a_look_at_the_package_is_cheap(code: str) -> None:
    assert not loaded_after(code) & HEAVY


@pytest.mark.parametrize("command", ["reduce", "train", "profile", "report", "demo"])
def test_help_and_wrong_usage_need_no_pytorch(command: str) -> None:
    code = f"from deepreduce.cli import main; main(['{command}', '--help']); assert main(['{command}', '--bogus']) == 2"
    assert not loaded_after(code) & (HEAVY - {"rich"})


@pytest.mark.parametrize("package", [deepreduce, deepreduce.training])
def test_every_public_name_is_there_and_listed(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert names == sorted(names, key=lambda name: (name.startswith("_"), name)) or len(set(names)) == len(names)
    for name in names:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_functions_are_not_hidden_by_modules_of_the_same_name() -> None:
    for package in (deepreduce, deepreduce.training):
        for name in package.__all__:
            assert type(getattr(package, name)).__name__ != "module", name


def test_jaxtyping_is_given_classes_and_no_aliases() -> None:
    """From Python 3.12 and numpy 2.5 on `NDArray[...]` is no class, and jaxtyping fails on it when it is imported."""
    package = Path(deepreduce.__file__).parent
    wrong = [
        path.name for path in package.rglob("*.py") if re.search(r"\b[A-Z]\w+\[NDArray\[.*?\], ?", path.read_text())
    ]
    assert wrong == []


def test_the_version_is_one_string() -> None:
    assert deepreduce.__version__.count(".") == 2


def test_an_error_shows_what_came_and_obeys_none_of_it() -> None:
    """Paths stay as they are, so that they can be copied; what a terminal would obey or hide is written out."""
    from deepreduce.errors import problem

    text = problem("it must hold", got="a\x1b[31m\nb\ud800\u200c", remedy="chmod 700 '/my  run'", where="/my  run\t")
    assert text == r"It must hold. Got: a\x1b[31m b\ud800\u200c. Do: chmod 700 '/my  run'. Where: /my  run ."


def test_numbers_of_numpy_are_numbers() -> None:
    import json

    import numpy as np

    from deepreduce import SearchSettings, TrainingConfig

    training = TrainingConfig(epochs=np.int64(3), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    found = SearchSettings(training=training, method="snl", budget=np.int32(9), budgets=np.array([9, 5]))  # type: ignore[arg-type]
    assert found.budgets == (9, 5) and json.loads(json.dumps(found.to_json()))["budget"] == 9


def test_an_installation_for_the_parties_alone_says_so() -> None:
    """`requirements/party.txt` installs neither PyTorch nor anything else for training."""
    kept = {line for line in Path("requirements/party.txt").read_text().splitlines() if line and line[0] != "#"}
    depends = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    base = {re.split(r"[>=\[]", one)[0] for one in depends["dependencies"]}
    assert kept < base | {re.split(r"[>=]", one)[0] for one in depends["optional-dependencies"]["private"]}
    missing = {"scikit-learn": "sklearn", "torch-pruning": "torch_pruning"}
    assert {missing.get(name, name) for name in base - kept} == _FOR_TRAINING
    blocked = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(_FOR_TRAINING)}))\nfrom deepreduce.cli import main\n"
    )
    code = "sys.exit(main(['profile', 'resnet18', '--input', '3x32x32']) + 10 * main(['env', '--json']))"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "needs the package 'torch'. Got: it is not installed" in done.stderr and "requirements" not in done.stderr
    assert json.loads(done.stdout)["devices"] == []
