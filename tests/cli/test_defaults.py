"""What an option's default is, and what its help says of it: those of the library, which costs too much to import."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import deepreduce
from deepreduce import FormatSettings, RunOptions, SearchSettings
from deepreduce.cli import _COMMANDS
from deepreduce.reduction import DEFAULT_EXPONENT


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"deepreduce.cli.{command}").add_options(parser)
    return parser


def default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def private_defaults() -> dict[str, dict[str, Any]]:
    pytest.importorskip("seal")
    from deepreduce.private.service import Client, ServerLimits

    limits = ServerLimits()
    (reveal,) = limits.reveal
    client = {"deadline": default(Client.connect, "deadline_seconds")}
    return {
        "serve": {
            "clients": limits.clients,
            "images": limits.images,
            "batch_memory": limits.batch_bytes,
            "bundles": limits.bundles,
            "bundles_per_day": limits.bundles_per_day,
            "deadline": limits.deadline_seconds,
            "reveal": reveal,
        },
        "prepare": client,
        "infer": {**client, "reveal": reveal},
    }


def test_the_defaults_of_private_inference_are_those_of_the_library() -> None:
    for command, expected in private_defaults().items():
        parser = parser_of(command)
        assert {name: parser.get_default(name) for name in expected} == expected, command


RUNNING = {"checkpoint_seconds": RunOptions().checkpoint_seconds, "threads": None, "tracker": None}
IMAGES = {"validation": default(deepreduce.load_data, "validation"), "per_class": None, "first_classes": None}
REDUCTION = ("keep", "thin", "alpha", "rho", "beta", "trim", "bypass", "collapse", "average_pooling", "width")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("profile", {name: default(deepreduce.profile, name) for name in (*REDUCTION, "classes")}),
        (
            "estimate",
            {
                name: default(deepreduce.estimate, name)
                for name in (*REDUCTION, "classes", "cores", "together", "relus")
            },
        ),
        ("train", {**RUNNING, **IMAGES, "seeds": SearchSettings().seeds}),
        (
            "reduce",
            {
                **RUNNING,
                **IMAGES,
                "seeds": SearchSettings().seeds,
                "method": SearchSettings().method,
                "executor": RunOptions().executor,
            },
        ),
        (
            "export",
            {
                **{name: default(deepreduce.export, name) for name in ("images", "link", "relus", "seconds", "data")},
                "margin": FormatSettings().margin,
                "failure_bits": FormatSettings().failure_bits,
            },
        ),
    ],
)
def test_the_defaults_are_those_of_the_library(command: str, expected: dict[str, Any]) -> None:
    parser = parser_of(command)
    assert {name: parser.get_default(name) for name in expected} == expected


def test_errors_name_options_that_exist() -> None:
    """The settings check themselves, and say where their user sets them."""
    from deepreduce.training import config, settings

    for command, kinds, places in (
        ("reduce", (deepreduce.TrainingConfig,), config._PLACES),
        ("reduce", (SearchSettings, RunOptions), settings._PLACES),
    ):
        named = {places.get(name, f"--{name.replace('_', '-')}") for kind in kinds for name in fields_of(kind)}
        assert {name for name in named if name.startswith("--")} <= options_of(command)
    pytest.importorskip("seal")
    from deepreduce.private.service import limits

    assert set(limits._PLACES) == fields_of(limits.ServerLimits) - {"reveal"}
    assert {name for name in limits._PLACES.values() if name.startswith("--")} <= options_of("serve")


def fields_of(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def options_of(command: str) -> set[str]:
    return {name for action in parser_of(command)._actions for name in action.option_strings}


LATER = {"exponent": DEFAULT_EXPONENT, "classes": default(deepreduce.profile, "classes")}
"""What takes the place of None later on, those of the training settings aside."""


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_says_the_default_that_is(command: str) -> None:
    told = 0
    for action in parser_of(command)._actions:
        said = re.search(r"\(?default (\d[\d.]*)", action.help or "")
        if said is None or isinstance(action.default, str):
            continue
        number = said[1].rstrip(".")
        value = LATER.get(action.dest, action.default)
        if value is None:
            value = getattr(deepreduce.TrainingConfig(), action.dest)
        shown = value / 1e9 if action.metavar == "GB" else value
        assert f"{shown:.2g}" == f"{float(number):.2g}", action.dest
        told += 1
    assert told or command in ("report", "env")
