"""DELPHI and Cheetah against the published and measured totals that their constants come from, by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import pytest

from deepreduce.errors import UsageError
from deepreduce.private.estimate import (
    LINKS,
    PROTOCOLS,
    Counts,
    cheetah_cost,
    constants_of,
    delphi_cost,
    delphi_online_seconds,
)

BOTH = list(LINKS.values())
RESNET18 = Counts(relus=557_056, relu_layers=17, macs=555_468_800, linear_layers=21)
TINY = Counts(relus=2_228_224, relu_layers=17, macs=4 * 555_468_800, linear_layers=21)


def test_example_delphi_on_resnet18() -> None:
    cost = delphi_cost(RESNET18, BOTH)
    assert cost.online.compute_seconds == pytest.approx(12.2 + 0.43, abs=0.1)
    assert cost.online.received_bytes == 557_056 * 1184 and cost.online.bytes == 557_056 * 1193
    assert cost.online.and_gates == 557_056 * 288
    assert cost.online.round_trips == 18
    assert cost.offline is not None
    assert cost.offline.compute_seconds == pytest.approx(286 + 21, rel=0.001)
    assert cost.offline.bytes == 557_056 * 19_088 and cost.offline.sent_bytes is None
    assert cost.client_bytes == pytest.approx(10.2e9, rel=0.005) and cost.server_bytes is None
    assert cost.setup is None
    # 12.685 s, 664.6 MB at 1 Gbit/s, 18 round trips of 1 ms
    assert cost.online.seconds["lan"] == pytest.approx(12.685 + 8 * 557_056 * 1193 / 1e9 + 0.018, abs=0.01)
    assert cost.online.seconds["wan"] == pytest.approx(12.685 + 8 * 557_056 * 1193 / 1e8 + 18 * 0.04, abs=0.01)


def test_delphi_on_four_times_the_pixels_as_the_logs_have_it() -> None:
    cost = delphi_cost(TINY, BOTH)
    assert cost.offline is not None
    assert cost.online.compute_seconds == pytest.approx(48.5 + 0.61, rel=0.05)
    assert cost.offline.compute_seconds == pytest.approx(1055 + 86, rel=0.1)
    assert cost.client_bytes == pytest.approx(40.7e9, rel=0.005)


def test_delphi_online_seconds_as_in_the_front() -> None:
    assert delphi_online_seconds(557_056, 555_468_800) == pytest.approx(12.685, abs=0.001)
    assert delphi_online_seconds(0, 0) == 0


def test_example_cheetah_on_resnet18() -> None:
    cost = cheetah_cost(RESNET18, BOTH)
    assert cost.online.compute_seconds == pytest.approx(30.7, rel=0.001)
    assert cost.online.bytes == pytest.approx(163e6, rel=0.001)
    assert cost.online.round_trips == 17 * 8 + 21
    assert cost.offline is None and cost.client_bytes == 0
    assert cost.setup is not None and 12 <= cost.setup.compute_seconds <= 18
    without = cheetah_cost(Counts(0, 0, RESNET18.macs, 21), BOTH)
    assert 1 - without.online.compute_seconds / 30.7 == pytest.approx(0.15, abs=0.001)  # its ReLUs are no bottleneck


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_number_says_what_it_is(protocol: str) -> None:
    file = resources.files("deepreduce.private.estimate") / "constants" / f"{protocol}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["protocol"] == protocol and all(content[key] for key in ("title", "source", "hardware", "date"))
    for name, entry in content["constants"].items():
        assert entry["value"] > 0 and entry["unit"] and entry["how"], name
    assert constants_of(protocol).not_accounted


def test_negative_counts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"relus is 0 or more.*Got: -1.*Do: "):
        Counts(-1, 0, 0, 0)


def test_a_look_at_it_needs_neither_numpy_nor_the_extra() -> None:
    code = (
        "from deepreduce.private.estimate import delphi_cost, cheetah_cost, Counts, LINKS\n"
        "delphi_cost(Counts(1, 1, 1, 1), list(LINKS.values())); cheetah_cost(Counts(1, 1, 1, 1), [])\n"
        "import sys; assert not {'numpy', 'torch', 'seal'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
