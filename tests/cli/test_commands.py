"""The contract of the command line: exit codes, JSON, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepreduce.cli import main

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.relu3(self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x))))))
        return self.fc(torch.flatten(self.pool(x), 1))
'''  # fmt: skip
QUICK = ["--data", "digits", "--epochs", "1", "--threads", "1", "--per-class", "20"]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network in a file beside the user."""
    (tmp_path / "tiny_user_network.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "tiny_user_network:Net"
    sys.modules.pop("tiny_user_network", None)


def test_example_train_reduce_report(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", net, "--out", "run", *QUICK, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["validation"]["n"] > 0 and trained["folder"] == "run"
    assert main(["reduce", net, "--out", "run", *QUICK, "--workers", "1", "--distilled-only", "--json"]) == 0
    shown = capsys.readouterr()
    front = json.loads(shown.out)
    assert front == json.loads(Path("run/front.json").read_text())
    assert front["teacher"]["validation"] == trained["validation"] and "already finished" in shown.err
    assert main(["reduce", net, "--out", "run", *QUICK, "--workers", "1", "--distilled-only"]) == 0
    shown = capsys.readouterr()
    assert "Pareto front" in shown.out and "run/front.json" in shown.out.replace("\n", "")
    assert "to train, " in shown.err  # progress goes to standard error alone
    pytest.importorskip("plotly")
    assert main(["report", "run", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    assert Path(files["page"]).stat().st_size > 1000 and all(Path(name).exists() for name in files["figures"])


def test_profile_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["profile", "resnet18", "--input", "3x32x32", "--keep", "S2,S3,S4", "--thin", "--json"]
    assert main(typed) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["relus"] == 114_688 and found["before"]["relus"] == 557_056
    assert {"name", "relus", "macs", "layers"} <= found["stages"][0].keys()
    assert main(typed[:-1]) == 0
    assert "114,688" in capsys.readouterr().out


def test_a_size_with_its_channels_last_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be meant, so it is not refused."""
    for size, told in (("28x28x1", True), ("32x32x3", True), ("3x32x32", False), ("3x32x3", False), ("64x8x8", False)):
        assert main(["profile", "resnet18", "--input", size, "--width", "0.125", "--json"]) == 0
        assert ("channels of height" in capsys.readouterr().err) is told
    assert main(["profile", "resnet18", "--input", "28x36x3", "--width", "0.125", "--json"]) == 0
    said = capsys.readouterr().err
    assert "28x36x3 is read as 28 channels of height 36 and width 3; an image of 3 channels is 3x28x36" in said


def test_profile_says_every_note_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["profile", "vgg16", "--input", "3x32x32", "--width", "0.25"]) == 0
    assert capsys.readouterr().out.count("MaxPool2d compares") == 5


def test_profile_with_average_pooling(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["profile", "vgg16", "--input", "3x32x32", "--width", "0.25", "--keep", "S3", "--json"]
    for more in ([], ["--average-pooling"]):
        assert main([*typed, *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["candidate"].get("average_pooling", False) is bool(more)
        assert any("MaxPool2d compares" in note for note in found["notes"]) is not bool(more)


def test_a_dry_run_prints_the_plan_and_trains_nothing(
    net: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepreduce.training.estimate._MEASURE_SECONDS", 0.02)
    assert main(["reduce", net, "--out", "run", *QUICK, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {"jobs", "hours", "workers", "note"} == plan.keys() and plan["jobs"][0]["kind"] == "teacher"
    assert main(["reduce", net, "--out", "run", *QUICK, "--dry-run"]) == 0
    assert "Plan" in capsys.readouterr().out
    assert not Path("run").exists()


def test_other_activations_are_exchanged_from_the_plan_to_the_report(
    net: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path("tiny_user_network.py")
    source.write_text(NET.replace("nn.ReLU()", "nn.SiLU()"))
    sys.modules.pop("tiny_user_network", None)
    typed = ["reduce", net, "--out", "run", *QUICK, "--method", "snl", "--budget", "200", "--workers", "1"]
    assert main([*typed, "--dry-run"]) == 1
    assert "--exchange-activations" in capsys.readouterr().err
    typed.append("--exchange-activations")
    assert main([*typed, "--dry-run"]) == 0 and main([*typed, "--json"]) == 0
    shown = capsys.readouterr().out
    front = json.loads(shown[shown.index("\n{") :])
    assert front["network"]["exchange_activations"] and front["candidates"][0]["status"] == "done"
    folder = Path("run/candidate") / front["candidates"][0]["id"] / "seed0"
    pytest.importorskip("seal")
    assert main(["estimate", str(folder), "--network", net, "--protocol", "ours", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["relus"] <= 200
    assert main(["profile", net, "--input", "1x8x8", "--exchange-activations", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["relus"] == 4 * 64 + 2 * 4 * 16


def test_a_method_that_finds_masks(
    net: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepreduce.training.estimate._MEASURE_SECONDS", 0.02)
    typed = ["reduce", net, "--out", "run", *QUICK, "--workers", "1", "--method", "snl", "--search-epochs", "2"]
    typed += ["--granularity", "channel", "--budget", "96,48"]
    assert main([*typed, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(job["kind"], job["label"], job["epochs"]) for job in plan["jobs"]] == [
        ("teacher", "teacher", 1),
        ("masks", "masks: snl by channel, budget 96", 2),
        ("masks", "masks: snl by channel, budget 48", 2),
        ("candidate", "snl by channel, budget 96", 1),
        ("candidate", "snl by channel, budget 48", 1),
    ]
    assert main(typed) == 0
    shown = capsys.readouterr()
    assert "Method: snl by channel, 2 epochs of search" in " ".join(shown.out.split()) and "Masks: 2" in shown.err
    front = json.loads(Path("run/front.json").read_text())
    assert sorted(entry["relus"] for entry in front["candidates"]) == [48, 96]
    assert main(["reduce", net, "--out", "run", *QUICK, "--workers", "1", "--method", "channel-pruning"]) == 0
    assert "Method: channel-pruning." in capsys.readouterr().out


def test_a_ranking_trains_the_finalists_alone(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["reduce", net, "--out", "run", *QUICK, "--workers", "1", "--distilled-only"]
    typed[typed.index("--epochs") + 1] = "2"
    assert main([*typed, "--rank-epochs", "1", "--budget", "200", "--finalists", "1"]) == 0
    shown = capsys.readouterr()
    front = json.loads(Path("run/front.json").read_text())
    assert len(front["ranking"]) > 1 and sum(row["kept"] for row in front["ranking"]) == 1
    assert sum(entry["status"] == "done" for entry in front["candidates"]) == 1
    said = f"Method: deepreduce, {len(front['ranking'])} candidates ranked after 1 epoch, 1 trained in full."
    words = " ".join(shown.out.split())
    assert said in words and "in this stage alone, 1 epoch;" in words
    assert f"Ranking: {len(front['ranking'])} to train" in shown.err and "Candidates: 1 to train" in shown.err


def test_env_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]
    assert main(["env"]) == 0
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], "COMMAND"),
        (["reduse"], "did you mean reduce"),
        (["reduce", "resnet18"], "--data"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--epo", "3"], "--epo"),
        (["reduce", "resnet81", "--data", "digits", "--out", "run"], "did you mean resnet18"),
        (["train", "resnet81", "--data", "digits", "--out", "run"], "did you mean resnet18"),
        (["reduce", "resnet18", "--data", "digitz", "--out", "run"], "did you mean digits"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--epochs", "0"], "--epochs"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--epochs", "x"], "Got: 'x'. Do: write a whole number. Where: --epochs."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--width", "x"], "Do: write a number. Where: --width."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--epochs"], "Got: expected one argument"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--precision", "bf17"], "did you mean bf16"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "more"], "Got: 'more'"),
        (["reduce", "resnet18", "--dta", "digits"], "'--dta' (did you mean --data"),
        (["--versoin"], "did you mean --version"),
        (["profile"], "needs NETWORK and --input. Got: a call without them. Do: give NETWORK and --input 3x32x32; "),
        (["profile", "resnet18"], "Got: a call without it. Do: give --input 3x32x32; deepreduce profile --help says more. Where: --input."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--trim", "3"], "Got: '--trim'. Do: deepreduce profile and estimate have --trim; "),
        (["profile", "resnet18", "--input", "3x32x32", "--keep-max-pooling"], "deepreduce reduce has --keep-max-pooling; "),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--method", "masks"], "did you mean deepreduce-masks"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--validation", "0.9"], "Where: --validation."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--per-class", "0"], "Where: --per-class."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--per-class", "9999"], "or fewer, or leave it out for all. Where: --per-class."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--first-classes", "11"], "Where: --first-classes."),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--mean", "125"], "Where: --mean."),
        (["profile", "resnet18", "--input", "3x32x32", "--alpha", "2"], "Where: --alpha."),
        (["profile", "resnet18", "--input", "3x32x32", "--keep", "S2", "--beta", "0.5,0.5"], "Where: --beta."),
        (["serve", "f", "--listen", "h:1", "--cert", "c", "--key", "k", "--store-limit", "-1"], "Where: --store-limit"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--fade", "1"], "--fade"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--method", "snl2"], "did you mean snl"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--method", "snl", "--granularity", "pixel"], "--granularity"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--granularity", "layer"], "--granularity"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--method", "snl", "--search-epochs", "0"], "--search-epochs"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--budget", "200,100"], "--budget"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--budget", "1e5"], "whole numbers"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--width", "0.125", "--method", "snl", "--granularity", "layer", "--budget", "9"], "smallest candidate"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--workers", "0"], "--workers"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--executor", "rya"], "did you mean ray"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--tracker", "tensorbord"], "did you mean tensorboard"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--weights", "none.safetensors"], "none.safetensors"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--trained"], "--trained"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--width", "0.125", "--crop", "8"], "--crop"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--width", "0.125", "--budget", "4352"], "below the network"),
        (["reduce", "resnet18", "--data", "digits", "--out", "run", "--width", "0.125", "--budget", "2"], "smallest candidate"),
        (["profile", "resnet18", "--input", "3x32"], "3x32x32"),
        (["profile", "resnet18", "--input", "3x32x32", "--keep", "S7"], "S1"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_names_the_place(
    typed: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(typed) == 2
    shown = capsys.readouterr()
    assert words in shown.err and "Traceback" not in shown.err and shown.out == ""
    assert not typed or ("Got: " in shown.err and "Do: " in shown.err and "usage" not in shown.err)
    assert list(tmp_path.iterdir()) == []


def test_what_comes_behind_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--", "--nowhere"]) == 1
    assert "Where: --nowhere" in capsys.readouterr().err


def test_failure_ends_with_1(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere"]) == 1
    assert "must exist. Got: no such folder. Do: check the path" in capsys.readouterr().err
    assert main(["export", "nowhere", "--relus", "9", "--out", "deploy"]) == 1
    assert "must exist. Got: no such folder. Do: check the path" in capsys.readouterr().err
    hot = ["--learning-rate", "1e30", "--warmup", "0", "--epochs", "4"]
    assert main(["train", net, "--out", "hot", *QUICK, *hot]) == 1
    assert "finite" in capsys.readouterr().err
    assert main(["train", net, "--out", "run", *QUICK]) == 0
    assert main(["train", "resnet18", "--width", "0.0625", "--out", "run", *QUICK]) == 1
    assert "another network" in capsys.readouterr().err
    assert main(["report", "run"]) == 1
    assert "deepreduce reduce" in capsys.readouterr().err


def test_digits_are_never_mirrored_and_folders_are(tmp_path: Path) -> None:
    import argparse

    from deepreduce.cli import _options

    parser = argparse.ArgumentParser()
    _options.add_data(parser)
    _options.add_training(parser)
    assert not _options.search_settings(parser.parse_args(["--data", "digits"])).training.flip
    assert _options.search_settings(parser.parse_args(["--data", "./digits"])).training.flip
    assert not _options.search_settings(parser.parse_args(["--data", "x", "--no-flip"])).training.flip


def started(*typed: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepreduce", *typed],
        stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip


def appears(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_1_and_the_same_command_goes_on(net: str, number: signal.Signals, tmp_path: Path) -> None:
    typed = ["train", net, "--out", "run", "--data", "digits", "--threads", "1", "--checkpoint-seconds", "0"]
    process = started(*typed, "--epochs", "3000")
    appears(tmp_path / "run" / "teacher" / "seed0" / "checkpoint.safetensors", process)
    os.killpg(process.pid, number)  # as a terminal does it
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "same command again" in said and "Traceback" not in said
    assert (tmp_path / "run" / "teacher" / "seed0" / "checkpoint.safetensors").exists()


def test_a_name_that_no_network_has_is_told_before_images_are_read(
    net: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepreduce.cli._options.load_data", lambda _: pytest.fail("images were read"))
    for command in ("reduce", "train"):
        assert main([command, f"{net[:-1]}r", "--out", "run", *QUICK]) == 2
        assert "did you mean Net" in capsys.readouterr().err


def test_a_stop_outside_of_training_says_what_is_kept(
    net: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepreduce.cli._options.load_data", stop)
    typed = ["reduce", net, "--out", "run", *QUICK]
    assert main(typed) == 1
    assert "stopped: nothing is written yet, and the same command begins from the start" in capsys.readouterr().err
    Path("run").mkdir()
    assert main(typed) == 1
    assert "stopped: what is finished is kept in run, and the same command continues it" in capsys.readouterr().err
    assert main([*typed, "--dry-run"]) == 1
    assert capsys.readouterr().err.strip() == "stopped"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)  # before there is anybody to write
    process = started("profile", "resnet18", "--input", "3x32x32", "--layers", "--json", stdout=writing)
    os.close(writing)
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=300) == 1 and "Traceback" not in said and "BrokenPipe" not in said
