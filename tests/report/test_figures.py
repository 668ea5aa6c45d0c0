"""Figures for a paper: they open, they show what the file says, and they never change by themselves."""

from __future__ import annotations

import io
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from deepreduce.errors import MissingExtraError, RunError
from deepreduce.report import write_figures

NAMES = [f"{name}.{kind}" for name in ("front", "stages", "criticality") for kind in ("png", "svg")]
SVG = "{http://www.w3.org/2000/svg}"


def texts(path) -> list[str]:
    return ["".join(each.itertext()) for each in ET.parse(path).iter(f"{SVG}text")]


def test_figures_open_and_are_the_same_on_a_second_run(front, tmp_path):
    paths = write_figures(front, tmp_path / "first")
    again = write_figures(front, tmp_path / "second")
    assert [path.name for path in paths] == NAMES
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(NAMES)
    for one, other in zip(paths, again, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes()
        if one.suffix == ".png":
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                assert image.width > 600
        else:
            assert ET.fromstring(content).tag == f"{SVG}svg"


def test_seconds_have_a_panel_for_each_link(priced, tmp_path):
    assert "seconds.svg" in [path.name for path in write_figures(priced, tmp_path)]
    found = texts(tmp_path / "seconds.svg")
    assert "estimated, LAN: 1,000 Mbit/s, 1 ms" in found and "estimated, WAN: 100 Mbit/s, 40 ms" in found
    assert {"0.5 s", "2 s"} <= set(found)


def test_text_in_the_svg_is_text(front, tmp_path):
    write_figures(front, tmp_path)
    assert "test accuracy, % (bars: 95 % interval)" in texts(tmp_path / "front.svg")
    assert {"S1", "S4", "full network", "114,688", "12,288"} <= set(texts(tmp_path / "stages.svg"))
    assert any("0.0944" in text for text in texts(tmp_path / "criticality.svg"))


def test_stage_figure_has_one_bar_per_layer(front, tmp_path):
    write_figures(front, tmp_path)
    bars = [each for each in ET.parse(tmp_path / "stages.svg").iter(f"{SVG}g") if each.get("id", "").startswith("bar-")]
    style = ["".join(path.get("style", "") for path in each.iter(f"{SVG}path")) for each in bars]
    green = sum("fill: #2f8f57" in each for each in style)
    white = sum("fill: #ffffff" in each for each in style)
    rows = [front["teacher"], *(entry for entry in front["candidates"] if entry["on_front"])]
    kept = sum(layer["kept"] for entry in rows for stage in entry["stages"] for layer in stage["layers"])
    assert (green, white) == (kept, 17 * len(rows) - kept)


def test_without_test_accuracies_validation_is_drawn(front, tmp_path):
    front["teacher"]["test"] = None
    write_figures(front, tmp_path)
    found = texts(tmp_path / "front.svg")
    assert "validation accuracy, % (bars: 95 % interval)" in found
    assert "off the front" in found


def test_hostile_names_are_drawn_as_they_are(front, tmp_path):
    front["candidates"][0]["label"] = "$\\frac{$ <b>&\x00\ud800 網"
    front["criticality"][0]["stage"] = "$x_$"
    write_figures(front, tmp_path)
    assert "$\\frac{$ <b>&\ufffd\ufffd 網" in texts(tmp_path / "stages.svg")


def test_nothing_measured(front, tmp_path):
    for entry in (front["teacher"], *front["candidates"]):
        entry.update(status="failed", validation=None, test=None, relus=None, stages=None)
    front.update(front=[], criticality=[])
    assert [path.name for path in write_figures(front, tmp_path)] == NAMES[:4]
    assert "no network has a validation accuracy" in texts(tmp_path / "front.svg")


@pytest.mark.parametrize("layers", [1, 60])
def test_one_stage_of_few_and_of_many_layers(front, tmp_path, layers):
    bars = [{"name": f"relu{i}", "relus": 2 ** (i % 12), "kept": i % 2 == 0, "shape": [1]} for i in range(layers)]
    front["census"]["stages"] = [{"name": "S1", "layers": bars}]
    for entry in front["candidates"]:
        entry["stages"] = [{"name": "S1", "relus": 1, "layers": bars}]
    front["criticality"] = front["criticality"][:1]
    assert len(write_figures(front, tmp_path)) == 6


def test_no_leftovers_and_no_half_files_where_writing_fails(front, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="must be written"):
        write_figures(front, tmp_path / "file")


def test_missing_matplotlib_names_the_extra(front, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"deepreduce\[report\]"):
        write_figures(front, tmp_path)
    with pytest.raises(RunError):
        write_figures({}, tmp_path)
