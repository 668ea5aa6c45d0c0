"""export, serve, prepare, infer: two parties as a user starts them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import deepreduce
from deepreduce.cli import main
from deepreduce.private import ring
from deepreduce.private.deployment import load_client, load_server
from deepreduce.private.homomorphic import default_backend
from deepreduce.private.store import BundleStore, BundleWriter
from deepreduce.private.twin import Twin
from deepreduce.private.wire import self_signed

from .test_commands import QUICK

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x):
        x = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(x, 1))
'''  # fmt: skip

EXPORT = ["export", "run", "--network", "tiny_private_network:Net", "--relus", "100000", "--out"]
FEW = ["--workers", "1", "--threads", "1", "--deadline", "120"]


@dataclass
class Home:
    """What the tests share: a run, its two files, a certificate, images and what they show."""

    folder: Path
    server: Path
    client: Path
    images: list[Path]
    labels: np.ndarray

    @property
    def certificate(self) -> list[str]:
        return ["--cert", str(self.folder / "tls" / "cert.pem"), "--key", str(self.folder / "tls" / "key.pem")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        (folder / "tiny_private_network.py").write_text(NET)
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        typed = ["reduce", "tiny_private_network:Net", "--out", "run", *QUICK, "--workers", "1", "--distilled-only"]
        typed += ["--epochs", "8", "--batch-size", "32"]  # enough to tell some digits apart
        assert main([*typed, "--json"]) == 0
        assert main([*EXPORT, "made", "--images", "64", "--margin", "3"]) == 0
        self_signed(folder / "tls", ["localhost", "127.0.0.1"])
        made = folder / "made"
        drawn = (load_digits().images[:200] * 255 / 16).astype(np.uint8)
        answers = Twin(load_server(made / "server.safetensors").program).run(
            load_client(made / "client.safetensors").normalise(drawn[:, None])
        )
        ordered = np.sort(answers.logits, axis=1)
        surest = np.argsort(ordered[:, -2] - ordered[:, -1])
        _, first = np.unique(answers.labels[surest], return_index=True)
        chosen = surest[[*first, *first, *first][:3]]  # the surest one of each class
        assert len(first) > 1
        paths = [folder / f"digit{number}.png" for number in range(3)]
        for path, image in zip(paths, drawn[chosen], strict=True):
            Image.fromarray(image).save(path)
        yield Home(folder, made / "server.safetensors", made / "client.safetensors", paths, answers.labels[chosen])
    sys.modules.pop("tiny_private_network", None)


def start(home: Home, *more: str, store: Path) -> subprocess.Popen[str]:
    typed = ["serve", str(home.server), "--listen", "127.0.0.1:0", *home.certificate, "--store", str(store), *FEW]
    return subprocess.Popen(
        [sys.executable, "-m", "deepreduce", *typed, *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )  # fmt: skip


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("listening on 127.0.0.1:"), (line, server.poll())
    return line.split()[-1]


@contextlib.contextmanager
def serving(home: Home, *more: str, store: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    server = start(home, *more, store=store)
    try:
        yield server, address_of(server)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate(timeout=300)


@pytest.fixture(scope="module")
def address(home: Home) -> Iterator[str]:
    """One server for all tests that do not end it."""
    with serving(home, store=home.folder / "shared") as (_, found):
        yield found


def reaching(home: Home, address: str, store: str) -> list[str]:
    ca = str(home.folder / "tls" / "cert.pem")
    return ["--connect", address, "--ca", ca, "--store", str(home.folder / store), *FEW]


def children_of(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{process}\n" in status.read_text():
                found.append(int(status.parent.name))
    return found


def test_example_export_serve_prepare_infer(home: Home, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = reaching(home, address, "example")
    capsys.readouterr()
    assert main(["prepare", str(home.client), "--bundles", "2", "--json", *there]) == 0
    shown = capsys.readouterr()
    made = json.loads(shown.out)
    assert made["bundles"] == 2 and made["stored_bytes"] > 0 and made["sent_bytes"] > 0 and made["seconds"] > 0
    assert made["kept"] == 2 and shown.err == ""  # a line every few seconds, for those who wait longer
    store = BundleStore(home.folder / "example", program=load_client(home.client).digest, role="client")
    assert store.count() == 2
    paths = [str(path) for path in home.images]
    assert main(["infer", str(home.client), *paths, "--json", *there]) == 0  # the third bundle is made now
    found = json.loads(capsys.readouterr().out)
    assert [one["label"] for one in found["images"]] == home.labels.tolist()
    assert [one["image"] for one in found["images"]] == paths
    assert found["online"]["received_bytes"] > 0 and found["before"]["sent_bytes"] > 0
    assert "logits" not in found["images"][0] and store.count() == 0
    assert main(["infer", str(home.client), paths[0], *there]) == 0
    shown = capsys.readouterr()
    name = load_client(home.client).about.classes[home.labels[0]]
    assert f"digit0.png: {name}\n" in shown.out and "online: " in shown.out and "round trips" in shown.out


def test_export_says_what_it_wrote(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(home.folder)
    capsys.readouterr()
    assert main([*EXPORT, "again", "--images", "32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"server", "client", "relus", "private_relus", "agreement", "failures"} == told.keys()
    assert told["private_relus"] == told["relus"] > 0
    assert 0 <= told["failures"] < 2**-12
    assert (home.folder / told["server"]).stat().st_mode & 0o777 == 0o600
    assert main([*EXPORT, "again", "--images", "32"]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert main(["export", "run", "--relus", "100000", "--out", "again"]) == 1
    assert "a run folder" not in shown and "comes from the caller" in capsys.readouterr().err
    assert "estimated from an image to its class: 0." in shown and " s over wan" in shown
    assert "secret: again/server.safetensors" in shown and "public: again/client.safetensors" in shown
    kept = (home.folder / told["server"]).read_bytes()
    assert main([*EXPORT, "again", "--images", "32", "--margin", "9"]) == 1
    assert "--replace" in capsys.readouterr().err and (home.folder / told["server"]).read_bytes() == kept
    assert main([*EXPORT, "again", "--images", "32", "--margin", "9", "--replace"]) == 0
    assert (home.folder / told["server"]).read_bytes() != kept


def test_export_says_where_more_relus_are_computed_than_counted(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(home.folder)
    honest = deepreduce.export
    monkeypatch.setattr(deepreduce, "export", lambda *a, **more: replace(honest(*a, **more), private_relus=98_765))
    assert main([*EXPORT, str(tmp_path / "more"), "--images", "32"]) == 0
    assert "ReLUs; 98,765 in private" in capsys.readouterr().out


def test_a_run_of_ones_own_network_is_estimated(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    run = home.folder / "run"
    network = next(path.parent for path in run.glob("candidate/*/*/recipe.json"))
    typed = ["estimate", "--network", "tiny_private_network:Net", "--protocol", "delphi", "--json"]
    for subject in ([str(run), "--relus", "100000"], [str(network)], [str(network / "recipe.json")]):
        assert main([*typed, *subject]) == 0
        assert json.loads(capsys.readouterr().out)["protocols"].keys() == {"delphi"}
    assert main(["estimate", str(run), "--relus", "100000", "--protocol", "delphi"]) == 1
    assert "--network" in capsys.readouterr().err
    assert main([*typed[:2], "resnet18", str(network)]) == 2
    assert "for a run of 'tiny_private_network:Net'" in capsys.readouterr().err


def test_a_run_of_a_module_from_python_takes_the_function_that_makes_it(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    """The run knows the class alone; weights and probe tell whether the network is the right one."""
    monkeypatch.chdir(home.folder)
    run = tmp_path / "run"
    shutil.copytree(home.folder / "run", run)
    for path in (run / "front.json", *run.rglob("recipe.json")):
        path.write_text(path.read_text().replace('"tiny_private_network:Net"', '"Net"'))
    for path in run.rglob("metrics.json"):
        metrics = json.loads(path.read_text())
        metrics["recipe_sha256"] = hashlib.sha256((path.parent / "recipe.json").read_bytes()).hexdigest()
        path.write_text(json.dumps(metrics))
    typed = ["export", str(run), "--relus", "100000", "--images", "32", "--out", str(tmp_path / "out"), "--network"]
    assert main([*typed, "tiny_private_network:Net"]) == 0
    capsys.readouterr()
    assert main([*typed, "resnet18"]) == 2


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["export", "RUN", "--relus", "1", "--out", "x"], "smallest has"),
        (["export", "RUN", "--relus", "100000", "--out", "x", "--images", "1"], "two images"),
        (["export", "RUN", "--out", "x"], "--relus"),
        (["export", "RUN", "--seconds", "1e-9", "--out", "x"], "the fastest takes"),
        (["export", "RUN", "--relus", "100000", "--out", "x", "--network", "resnet18"], "tiny_private_network:Net"),
        (["serve", "SERVER", "--listen", "127.0.0.1", "CERTIFICATE"], "HOST:PORT"),
        (["serve", "SERVER", "--listen", "127.0.0.1:0"], "--cert"),
        (["serve", "SERVER", "--listen", "127.0.0.1:0", "CERTIFICATE", "--clients", "0"], "Clients lies"),
        (["serve", "SERVER", "--listen", "127.0.0.1:0", "CERTIFICATE", "--bundles-per-day", "0"], "bundles_per_day"),
        (["serve", "SERVER", "--listen", "127.0.0.1:0", "CERTIFICATE", "--store-limit", "-1"], "gigabytes"),
        (["serve", "SERVER", "--listen", "192.0.2.1:0", "CERTIFICATE"], "can listen at --listen"),
        (["serve", "SERVER", "--listen", "127.0.0.1:0", "CERTIFICATE", "--reveal", "weights"], "--reveal"),
        (["prepare", "CLIENT", "--connect", "127.0.0.1:1", "--ca", "CA", "--bundles", "0"], "--bundles"),
        (["infer", "CLIENT", "--connect", "127.0.0.1:1", "--ca", "CA"], "IMAGE"),
        (["infer", "CLIENT", "IMAGE", "--connect", "127.0.0.1", "--ca", "CA"], "HOST:PORT"),
        (["infer", "CLIENT", "IMAGE", "--connect", "127.0.0.1:1", "--ca", "CA", "--deadline", "-3"], "deadline"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else value,
)
def test_wrong_usage_ends_with_2(
    home: Home, typed: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(home.folder)
    names = {
        "RUN": ["run"], "SERVER": [str(home.server), "--store", str(tmp_path / "s")], "CERTIFICATE": home.certificate,
        "CLIENT": [str(home.client), "--store", str(tmp_path / "c")], "CA": [str(home.folder / "tls" / "cert.pem")],
        "IMAGE": [str(home.images[0])],
    }  # fmt: skip
    capsys.readouterr()
    assert main([part for word in typed for part in names.get(word, [word])]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and "Traceback" not in shown.err and shown.out == ""


def test_weights_that_others_may_read_are_not_served(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "server.safetensors"
    copy.write_bytes(home.server.read_bytes())
    copy.chmod(0o644)
    told = failing(["serve", str(copy), "--listen", "127.0.0.1:0", *home.certificate], capsys)
    assert "owner alone" in told and "chmod 600" in told
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]
    assert main(["estimate", str(copy)]) == 0  # who only counts may


def test_a_port_that_is_taken_is_told_at_once(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        typed = ["serve", str(home.server), "--listen", listen, *home.certificate, "--store", str(tmp_path / "s")]
        assert main(typed) == 2
    told = capsys.readouterr().err
    assert "in use" in told and "choose a free port" in told and "preparing the weights" not in told


def test_a_request_takes_no_more_memory_than_allowed(home: Home, tmp_path: Path) -> None:
    server = start(home, "--batch-memory", "0.000001", store=tmp_path)
    try:
        address_of(server)
        server.send_signal(signal.SIGINT)
        told = server.communicate(timeout=300)[1]
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate(timeout=300)
    assert "images at once: 1, not 64" in told and "more than the limit of 0.0 MiB" in told


def failing(typed: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(typed) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    return shown.err


def test_what_fails_ends_with_1_and_spends_nothing(
    home: Home, address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there, client, image = reaching(home, address, "fails"), str(home.client), str(home.images[0])
    assert main(["prepare", client, *there]) == 0
    store = BundleStore(home.folder / "fails", program=load_client(home.client).digest, role="client")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "tall.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no image")
    for name in ("tall.png", "colour.png"):
        assert "takes images of 1x8x8" in failing(["infer", client, str(tmp_path / name), *there], capsys)
    for name, words in (
        ("text.png", "damaged"),
        ("missing.png", "An image is a file. Got: nothing of"),
        (".", "a folder"),
    ):
        told = failing(["infer", client, image, str(tmp_path / name), *there], capsys)
        assert words in told and str(tmp_path / name) in told
    told = failing(["infer", str(home.server), image, *there], capsys)
    assert "client.safetensors" in told
    self_signed(tmp_path / "other", ["127.0.0.1"])
    wrong = [str(tmp_path / "other" / "cert.pem") if word.endswith("cert.pem") else word for word in there]
    assert "certificate" in failing(["infer", client, image, *wrong], capsys)
    named = ["--server-name", "example.org"]
    assert "certificate" in failing(["infer", client, image, *there, *named], capsys)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port
        nobody = f"127.0.0.1:{held.getsockname()[1]}"
        gone = [nobody if word == address else word for word in there]
        assert "must listen at this address" in failing(["infer", client, image, *gone], capsys)
    assert store.count() == 1
    assert main(["infer", client, image, *there]) == 0
    assert store.count() == 0


def test_logits_are_refused_unless_the_server_allows_them(
    home: Home, address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    typed = ["infer", str(home.client), str(home.images[0]), "--reveal", "logits", "--json"]
    capsys.readouterr()
    assert main([*typed, *reaching(home, address, "policy")]) == 2
    assert "reveals label" in capsys.readouterr().err
    with serving(home, "--reveal", "logits", store=tmp_path / "open") as (_, other):
        assert main([*typed, *reaching(home, other, "open")]) == 0
        (found,) = json.loads(capsys.readouterr().out)["images"]
        assert int(np.argmax(found["logits"])) == found["label"] == home.labels[0] and len(found["logits"]) == 10
        assert main([*typed[:-1], *reaching(home, other, "open")]) == 0  # for people: the largest, largest first
    lines = capsys.readouterr().out.splitlines()
    shown = re.fullmatch(r"  logits: ((?:\S+ -?\d+\.\d{3}, ){5})and 5 more with --json", lines[1])
    assert shown and lines[0].endswith(shown[1].split()[0])


@pytest.mark.skipif(ring.default_backend() == "torch", reason="no kernel for products in a ring is built")
def test_neither_party_needs_pytorch(home: Home, tmp_path: Path) -> None:
    """It takes a second to import, and 150 MB."""
    without = "import sys; sys.modules['torch'] = None; from deepreduce.cli import main; sys.exit(main(sys.argv[1:]))"
    typed = ["serve", str(home.server), "--listen", "127.0.0.1:0", *home.certificate, "--store", str(tmp_path / "s")]
    server = subprocess.Popen(
        [sys.executable, "-c", without, *typed, *FEW], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        there = reaching(home, address_of(server), str(tmp_path / "c"))
        client = ["infer", str(home.client), str(home.images[0]), "--json", *there]
        done = subprocess.run([sys.executable, "-c", without, *client], capture_output=True, text=True, timeout=300)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.communicate(timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["label"] == home.labels[0]


def test_prepare_says_how_many_bundles_there_are(
    home: Home, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, there = str(home.client), reaching(home, address, "counted")
    capsys.readouterr()
    assert main(["prepare", client, "--bundles", "2", *there]) == 0
    assert "2 bundles in" in (told := capsys.readouterr().out) and "bundles there now: 2" in told
    count = ["prepare", client, "--count", "--store", str(home.folder / "counted")]  # and no server
    assert main(count) == 0 and capsys.readouterr().out == "bundles: 2\n"
    assert main([*count, "--json"]) == 0 and json.loads(capsys.readouterr().out) == {"bundles": 2}
    assert main(["prepare", client]) == 2
    assert "Got: no --connect. Do: give both, or --count" in capsys.readouterr().err

    # One that is stopped in the middle says what it leaves.
    publish = BundleWriter.publish

    def stopping(writer: BundleWriter) -> None:
        if writer.name.number == 1:
            raise KeyboardInterrupt
        publish(writer)

    monkeypatch.setattr(BundleWriter, "publish", stopping)
    assert main(["prepare", client, "--bundles", "2", *there]) == 1
    assert "1 of 2 bundles were prepared, and are kept" in capsys.readouterr().err
    assert main(count) == 0 and capsys.readouterr().out == "bundles: 3\n"


def test_another_model_is_refused(
    home: Home, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(home.folder)
    assert main([*EXPORT, "other", "--images", "32", "--margin", "9"]) == 0
    other = home.folder / "other" / "client.safetensors"
    assert load_client(other).digest != load_client(home.client).digest
    told = failing(["infer", str(other), str(home.images[0]), *reaching(home, address, "wrong")], capsys)
    assert "another model" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everybody"),
    [(signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["as a terminal", "as a batch system"],
)
def test_a_signal_ends_the_server_and_its_workers(
    home: Home, number: signal.Signals, everybody: bool, tmp_path: Path
) -> None:
    with serving(home, store=tmp_path / "s") as (server, there):
        assert main(["prepare", str(home.client), *reaching(home, there, f"end{number}{everybody}")]) == 0
        workers = children_of(server.pid)
        assert bool(workers) == (default_backend() == "seal")  # the kernel's are threads
        if everybody:
            os.killpg(server.pid, number)
        else:
            server.send_signal(number)
        _, said = server.communicate(timeout=300)
        assert server.returncode == 0  # that is how a server ends
        assert "stopped" in said and "Traceback" not in said and "process" in said
        end = time.monotonic() + 300
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < end
            time.sleep(0.05)
    again = BundleStore(tmp_path / "s", program=load_client(home.client).digest, role="server")
    assert again.count() == 1  # what was prepared is there for the next start
