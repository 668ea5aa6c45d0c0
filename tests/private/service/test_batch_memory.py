"""A server that bounds the memory of one online phase: clients hear it, and one that does not care is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deepreduce.errors import UsageError
from deepreduce.private.service import ServerLimits
from deepreduce.private.wire import PeerError

from .parties import serving, sure, tiny


def test_example_fewer_images_go_at_once_where_they_take_too_much(
    tmp_path: Path, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = sure(tiny(), 5)
    memory, layout = tiny().client.layout.memory, tiny().client.layout
    limits = ServerLimits(batch_bytes=memory.of(2))
    with (
        caplog.at_level(logging.INFO, logger="deepreduce.server"),
        serving(tiny(), tmp_path, certificate, limits=limits) as party,
    ):
        assert any("images at once: 2, not 64" in line for line in caplog.messages)
        with party.client("turns") as client:
            client.prepare(5)
            answer = client.infer(images)
            assert np.array_equal(answer.labels, labels)
            assert answer.traffic.turns == 3 * (len(layout.rounds) + 1)  # two, two, one
        with party.client("much") as client:
            client._welcome = SimpleNamespace(
                images=3, bundles=9, together=9, reveal=("label",), session=client._welcome.session
            )
            with pytest.raises(PeerError, match="at most 2 images go at once") as refused:
                client.infer(images[:3])
            assert refused.value.code == "limit"


@pytest.mark.parametrize("most", [1, 64])
def test_one_image_is_always_served(
    most: int, tmp_path: Path, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = sure(tiny(), 2)
    with (
        caplog.at_level(logging.INFO, logger="deepreduce.server"),
        serving(tiny(), tmp_path, certificate, limits=ServerLimits(images=most, batch_bytes=1)) as party,
        party.client("one") as client,
    ):
        assert any("one image takes more than" in line for line in caplog.messages)
        assert np.array_equal(client.infer(images).labels, labels)


def test_a_limit_that_is_no_integer_gives_whole_images() -> None:
    memory = tiny().client.layout.memory
    assert isinstance(memory.images(1e6), int) and memory.images(1e6) == memory.images(10**6)  # type: ignore[arg-type]


def test_the_default_takes_64_images_of_a_small_network() -> None:
    assert tiny().client.layout.memory.images(ServerLimits().batch_bytes) >= 64
    with pytest.raises(UsageError, match=r"batch_bytes lies between.*Got: 0.*Do: "):
        ServerLimits(batch_bytes=0)
