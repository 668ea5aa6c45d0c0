"""Where data comes from. `test_the_digits_of_scikit_learn` is the example to read first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepreduce.data import Dataset, load
from deepreduce.errors import UsageError

from .small import misuse, refusal, write_folders, write_parquet

CIFAR = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar100"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def test_the_digits_of_scikit_learn(digits: Dataset) -> None:
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    assert digits.input == (1, 8, 8)
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797
    assert len(digits.test) == 359
    assert int(digits.train.images.max()) == 255
    assert len(digits.train.images.unique()) == 17
    assert "no test split" in digits.notes[0]


def test_digits_are_the_same_every_time(digits: Dataset) -> None:
    again = load("digits")
    assert again.fingerprint == digits.fingerprint
    assert torch.equal(again.train.images, digits.train.images)
    other = load("digits", seed=1)
    assert other.fingerprint != digits.fingerprint
    assert torch.equal(other.test.images, digits.test.images)


def test_small_digits() -> None:
    data = load("digits", classes=3, per_class=20, validation=0.25)
    assert data.classes == ("0", "1", "2")
    assert torch.bincount(data.train.labels).tolist() == [15, 15, 15]
    assert torch.bincount(data.validation.labels).tolist() == [5, 5, 5]
    assert set(data.test.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digit", ["'digit' (did you mean digits?)", "uoft-cs/cifar100", "a local folder"]),
        ("", ["''"]),
        ("./nowhere", ["no folder here"]),
        ("/no/such/folder", ["no folder here"]),
        ("a/b/c", ["no folder here"]),
        ("../data", ["no folder here"]),
    ],
)
def test_an_unknown_source_is_wrong_usage(source: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(UsageError) as caught:
        load(source)
    for word in words:
        assert word in str(caught.value)


def test_a_file_is_wrong_usage(source: Path) -> None:
    write_parquet(source)
    with pytest.raises(UsageError, match="must be a folder"):
        load(str(source / "test-00000-of-00001.parquet"))


def test_columns_for_a_source_without_columns_are_wrong_usage(source: Path) -> None:
    write_folders(source, {"train": 10})
    for name in ("digits", str(source)):
        with pytest.raises(UsageError, match="name columns of parquet files"):
            load(name, label_column="label")


@pytest.mark.parametrize("options", [{"validation": 0}, {"validation": 0.6}, {"seed": -1}, {"cache": 3}])
def test_wrong_options_are_refused_before_any_download(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    misuse(lambda: load("owner/name", **options))  # type: ignore[arg-type]


def test_an_empty_folder_is_refused(source: Path) -> None:
    message = refusal(lambda: load(str(source)))
    assert "neither parquet files nor folders" in message


def test_a_hub_name_is_fetched_and_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetch(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        calls.append((name, repo_type))
        assert "*.parquet" in allow_patterns
        assert "*.png" in allow_patterns
        assert not any(pattern.endswith((".py", ".pkl", "*")) for pattern in allow_patterns)
        return str(write_parquet(source))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    data = load("owner/name")
    assert calls == [("owner/name", "dataset")]
    assert data.name == "owner/name"
    assert data.fingerprint == load(str(source)).fingerprint


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    message = refusal(lambda: load("owner/name"))
    assert "ConnectionError: no route to host" in message
    assert "much more" not in message
    assert "network" in message
    assert "--data owner/name" in message


def test_the_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "--data owner/name" in refusal(lambda: load("owner/name"))


def test_a_local_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    folder = Path("owner/name")
    folder.mkdir(parents=True)
    write_parquet(folder)
    assert load("owner/name").name == "name"
    assert load(str(folder.resolve())).name == "name"
    monkeypatch.chdir(folder)
    assert load(".").name == "name"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="../shared/data/cifar100 is not beside this repository")
def test_the_known_facts_of_cifar_100(tmp_path: Path) -> None:
    data = load(str(CIFAR), cache=tmp_path)
    again = load(str(CIFAR), cache=tmp_path)
    assert data.name == "cifar100"
    assert len(data.classes) == 100
    assert data.classes[:2] == ("apple", "aquarium_fish")
    assert data.input == (3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [450] * 100
    assert torch.bincount(data.validation.labels).tolist() == [50] * 100
    assert torch.bincount(data.test.labels).tolist() == [100] * 100
    assert data.mean == pytest.approx((0.5071, 0.4867, 0.4408), abs=1e-3)
    assert data.std == pytest.approx((0.2675, 0.2565, 0.2761), abs=1e-3)
    assert "10 distinct images stand in both the training and the test split" in data.notes
    assert "17 distinct images carry more than one label" in data.notes
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.validation.images, data.validation.images)
    small = load(str(CIFAR), cache=tmp_path, classes=10, per_class=50)
    assert (len(small.train), len(small.validation), len(small.test)) == (450, 50, 1000)
