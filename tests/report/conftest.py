"""A front as `deepreduce reduce` writes it: ResNet18 at 32x32, with the accuracies of the paper's table."""

from __future__ import annotations

import copy
import math
from html.parser import HTMLParser

import pytest

SITES = {
    "S1": ["relu", "layer1.0.relu1", "layer1.0.relu2", "layer1.1.relu1", "layer1.1.relu2"],
    "S2": ["layer2.0.relu1", "layer2.0.relu2", "layer2.1.relu1", "layer2.1.relu2"],
    "S3": ["layer3.0.relu1", "layer3.0.relu2", "layer3.1.relu1", "layer3.1.relu2"],
    "S4": ["layer4.0.relu1", "layer4.0.relu2", "layer4.1.relu1", "layer4.1.relu2"],
}
CHANNELS = {"S1": 64, "S2": 128, "S3": 256, "S4": 512}
SIDE = {"S1": 32, "S2": 16, "S3": 8, "S4": 4}
ALL = ("S1", "S2", "S3", "S4")
# MACs of ResNet18 at 32x32 for (alpha, rho), published.
MACS = {(1, 1): 555.5e6, (0.5, 1): 139.3e6, (1, 0.5): 138.9e6, (0.5, 0.5): 34.8e6}


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    z = 1.959964
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def measured(accuracy: float | None, n: int, seeds: int = 1) -> dict | None:
    if accuracy is None:
        return None
    low, high = wilson(accuracy, n)
    runs = [accuracy + 0.002 * (i - (seeds - 1) / 2) for i in range(seeds)]
    spread = 0.002 * math.sqrt(seeds * (seeds + 1) / 12) if seeds > 1 else None
    return {"accuracy": accuracy, "low": low, "high": high, "n": n, "runs": runs, "mean": accuracy, "sd": spread}


def stage_map(keep: tuple[str, ...], thin: bool, alpha: float, rho: float) -> list[dict]:
    stages = []
    for stage, sites in SITES.items():
        channels, side = int(CHANNELS[stage] * alpha), int(SIDE[stage] * rho)
        layers = [
            {
                "name": site,
                "relus": channels * side * side,
                "kept": stage in keep and not (thin and not site.endswith("relu1")),
                "shape": [channels, side, side],
            }
            for site in sites
        ]
        stages.append({"name": stage, "relus": sum(x["relus"] for x in layers if x["kept"]), "layers": layers})
    return stages


def entry(
    keep: tuple[str, ...],
    thin: bool,
    alpha: float,
    rho: float,
    validation: float | None,
    *,
    test: float | None = None,
    status: str = "done",
    reason: str = "",
    seeds: int = 1,
) -> dict:
    stages = stage_map(keep, thin, alpha, rho)
    relus = sum(stage["relus"] for stage in stages)
    label = " ".join(keep) + (", thinned" if thin else "")
    label += f", alpha {alpha}" if alpha != 1 else ""
    label += f", rho {rho}" if rho != 1 else ""
    return {
        "id": "-".join(keep).lower() + ("-t" if thin else "") + f"-a{alpha}-r{rho}",
        "label": label,
        "recipe": {"keep": list(keep), "thin": thin, "alpha": alpha, "rho": rho, "drop": []},
        "relus": relus,
        "macs": MACS[alpha, rho],
        "params": int(11_220_132 * alpha * alpha),
        "stages": stages,
        "status": status,
        "reason": reason,
        "validation": measured(validation, 5000, seeds),
        "test": measured(test, 10000, seeds),
        "epochs": 200 if status == "done" else 0,
        "seconds": 3120.0 if status == "done" else None,
        "latency": {"delphi": 0.4 + relus * 21.9e-6},
        "on_front": False,
    }


def census() -> dict:
    share = {"S1": (0.273, 0.0135), "S2": (0.245, 0.047), "S3": (0.241, 0.187), "S4": (0.241, 0.7525)}
    stages = []
    for stage in stage_map(ALL, False, 1, 1):
        macs, params = int(555.5e6 * share[stage["name"]][0]), int(11_220_132 * share[stage["name"]][1])
        layers = [
            {
                "name": layer["name"],
                "relus": layer["relus"],
                "macs": macs // len(stage["layers"]),
                "params": params // len(stage["layers"]),
                "shape": layer["shape"],
                "after_addition": layer["name"].endswith("relu2"),
                "source": "resnet.py:41",
            }
            for layer in stage["layers"]
        ]
        side = SIDE[stage["name"]]
        totals = {"relus": stage["relus"], "macs": macs, "params": params}
        stages.append({"name": stage["name"], "resolution": [side, side], **totals, "layers": layers})
    return {"relus": 557_056, "macs": 555_500_000, "params": 11_220_132, "stages": stages}


def build() -> dict:
    rest = ("S2", "S3", "S4")
    teacher = entry(ALL, False, 1, 1, 0.7464, test=0.7446)
    teacher |= {"id": "teacher", "label": "ResNet18, all ReLUs", "on_front": True}
    candidates = [
        entry(rest, False, 1, 1, 0.7630, test=0.7622),
        entry(("S2", "S3"), False, 1, 1, 0.7538, test=0.7551),
        entry(rest, True, 1, 1, 0.7484, test=0.7472),
        entry(("S2", "S3"), True, 1, 1, 0.7340),
        entry(rest, True, 0.5, 1, 0.7290, test=0.7268),
        entry(("S2", "S3"), True, 0.5, 1, 0.6946, test=0.6950),
        entry(rest, True, 1, 0.5, 0.6862, test=0.6868),
        entry(("S3", "S4"), False, 1, 1, 0.7010),
        entry(("S3",), False, 1, 1, 0.6921),
        entry(rest, True, 0.5, 0.5, 0.6560, test=0.6541),
        entry(("S2", "S3"), True, 0.5, 0.5, 0.6502, test=0.6497),
        entry(("S1",), False, 1, 1, 0.4870),
        entry(("S2",), False, 1, 1, 0.6610),
        entry(("S3",), True, 0.5, 1, None, status="failed", reason="the loss became NaN in epoch 12 with every seed"),
        entry(("S4",), True, 0.5, 0.5, None, status="skipped", reason="1,024 ReLUs are below the floor of 4,096"),
    ]
    for candidate in candidates:
        candidate["on_front"] = candidate["test"] is not None
    accuracies = {"S1": (0.487, 0.402), "S2": (0.661, 0.604), "S3": (0.6921, 0.6514), "S4": (0.588, 0.552)}
    sizes = {"S1": 327_680, "S2": 131_072, "S3": 65_536, "S4": 32_768}
    criticality = [
        {
            "stage": stage,
            "relus": sizes[stage],
            "accuracy": distilled,
            "accuracy_plain": plain,
            "criticality": (distilled - 0.487) / sizes[stage] ** 0.07,
            "entries": [f"{stage.lower()}-a1-r1"],
        }
        for stage, (distilled, plain) in accuracies.items()
    ]
    names = [f"class {i}" for i in range(100)]
    return {
        "format": "deepreduce.front",
        "version": 1,
        "network": {"name": "resnet18", "input": [3, 32, 32], "classes": 100, "width": 64},
        "data": {
            "name": "uoft-cs/cifar100",
            "fingerprint": "9f2c41d07e55",
            "train": 45000,
            "validation": 5000,
            "test": 10000,
            "classes": names,
        },
        "settings": {
            "epochs": 200,
            "batch_size": 128,
            "learning_rate": 0.1,
            "distillation": {"temperature": 4, "weight": 1.0},
            "fading": None,
            "seeds": [0],
        },
        "census": census(),
        "teacher": teacher,
        "criticality": criticality,
        "exponent": 0.07,
        "candidates": candidates,
        "front": [x["id"] for x in sorted((c for c in candidates if c["on_front"]), key=lambda c: c["relus"])]
        + ["teacher"],
        "environment": {
            "deepreduce": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "processor": "x86-64, 2 cores, AVX2",
            "devices": ["cpu"],
            "command": "deepreduce reduce resnet18 --data uoft-cs/cifar100 --out run",
            "date": "2026-01-05T10:00:00Z",
        },
        "seconds": 43680.0,
    }


_FRONT = build()


@pytest.fixture
def front() -> dict:
    """A fresh copy, free to be changed."""
    return copy.deepcopy(_FRONT)


LINKS = {
    "lan": {"bits_per_second": 1e9, "round_trip_seconds": 0.001},
    "wan": {"bits_per_second": 1e8, "round_trip_seconds": 0.04},
}
QUICK = "s3-a1-r1"
"""Off the front of ReLUs; over the wide link the fastest network of its accuracy."""


def price(entry: dict) -> dict:
    layers = sum(layer["kept"] for stage in entry["stages"] for layer in stage["layers"])
    relus, trips = entry["relus"], layers + 1
    wan = 0.35 if entry["id"] == QUICK else 0.04 * trips + 24e-6 * relus
    online = {"seconds": {"lan": 0.001 * trips + 2.2e-6 * relus, "wan": wan}, "bytes": 250 * relus}
    offline = {"seconds": {"lan": 1.5, "wan": 12.0}, "bytes": 500 * relus, "round_trips": 30}
    return {"online": {**online, "round_trips": trips}, "offline": offline, "and_gates": 13 * relus}


@pytest.fixture
def priced(front) -> dict:
    """The same with what each network costs privately; one cannot run so."""
    entries = [front["teacher"], *(entry for entry in front["candidates"] if entry["status"] == "done")]
    for each in entries:
        each["private"] = price(each)
    unable = next(entry for entry in entries if entry["id"] == "s1-a1-r1")
    unable["private"] = {"reason": "A layer is known. Got: Swish."}
    front["private"] = {"links": LINKS, "cores": 2, "hardware": "one core of EXAMPLE", "date": "2026-01-05"}
    wide = [QUICK if name.startswith("s2-s3-t-a0.5-r1") else name for name in front["front"]]
    front["fronts_in_seconds"] = {"lan": list(front["front"]), "wan": wide}
    return front


@pytest.fixture
def measure():
    """`measured`, for tests that need an accuracy with its interval."""
    return measured


class Reader(HTMLParser):
    """The page as a flat list of (tag, attributes, text directly inside), void elements included."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in ("meta", "input", "br", "link", "img"):
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)


@pytest.fixture
def read():
    """Parse a page strictly: every element must be closed in order."""

    def parse(text: str) -> Reader:
        reader = Reader()
        reader.feed(text)
        reader.close()
        assert not reader.open
        return reader

    return parse
