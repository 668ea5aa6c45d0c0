"""The HTML page: complete, right, self-contained, and safe with strings from strangers."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import sys

import pytest

from deepreduce.errors import MissingExtraError, RunError
from deepreduce.report import write_page
from deepreduce.report.page import embedded_json, render_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\u2028\x1b"


def without_library(text: str) -> str:
    """The page without plotly.js, so that a search does not find what the library says."""
    from plotly.offline import get_plotlyjs

    assert get_plotlyjs() in text
    return text.replace(get_plotlyjs(), "")


@pytest.fixture
def page(front):
    return without_library(render_page(front))


def visible(reader) -> str:
    return " ".join(
        " ".join(part for tag, _, parts in reader.elements if tag not in ("script", "style") for part in parts).split()
    )


def chart(reader) -> dict:
    return next(json.loads("".join(parts)) for tag, given, parts in reader.elements if given.get("id") == "figures")


def bars_by_row(page: str) -> dict[str, list[tuple[int, int]]]:
    """For each row of the stage map, its (kept, removed) bars per stage."""
    table = page[page.index('<table class="map">') :].split("</table>")[0]
    rows = {}
    for row in table.split("<tr")[2:]:
        key = re.search(r'data-key="(n\d+)"', row)[1]
        cells = row.split("<td>")[1:]
        rows[key] = [(cell.count('class="kept"'), cell.count('class="gone"')) for cell in cells if "<svg" in cell]
    return rows


def test_headline_figures(page, read):
    text = visible(read(page))
    assert "4.9x fewer ReLUs at +0.26 points of accuracy" in text
    assert "S2 S3 S4, thinned keeps 114,688 of 557,056 ReLUs." in text
    assert "On 10,000 test images it is right 74.72 % of the time (95 % interval 73.9 to 75.6)" in text
    assert "74.46 % (73.6 to 75.3)" in text
    assert "The change is +0.26 points (95 % interval -0.95 to +1.47)." in text
    assert "does not prove that there is none" in text
    assert "estimated from DELPHI's logs, without network time" in text
    assert "13 trained candidates and the teacher" in text  # of 15; one failed, one was skipped


def test_headline_where_every_network_loses(front, measure, read):
    front["teacher"]["validation"] = measure(0.95, 5000)
    text = visible(read(without_library(render_page(front))))
    assert "Every reduced network on the front is measurably below the teacher" in text
    assert "no measurable loss" not in text


def test_headline_where_the_teacher_guesses(front, measure, read):
    front["teacher"]["validation"] = measure(0.011, 5000)
    text = visible(read(without_library(render_page(front))))
    assert "the teacher is not measurably better than guessing, so nothing is claimed" in text
    assert "Train the teacher longer" in text and "no measurable loss" not in text


def test_headline_where_one_stage_alone_beats_the_teacher(front, measure, read):
    front["teacher"]["validation"] = measure(0.66, 5000)
    text = visible(read(without_library(render_page(front))))
    assert "the teacher seems under-trained, so nothing is claimed" in text
    assert "A network with the ReLUs of S3 alone is right on 69.21" in text
    assert "no measurable loss" not in text


def test_headline_that_the_test_images_refute(front, measure, read):
    chosen = next(entry for entry in front["candidates"] if entry["relus"] == 114_688)
    chosen["test"] = measure(0.60, 10000)
    text = visible(read(without_library(render_page(front))))
    assert "4.9x fewer ReLUs at -14.46 points of accuracy, a measurable loss" in text
    assert "The test images do show one." in text
    assert "It is the smallest network on the front without a measurable loss" not in text


def test_page_loads_nothing(page, read):
    reader = read(page)
    for tag, given, _ in reader.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img"), tag
        assert "src" not in given
        assert not (given.get("href") or "#").lstrip("#").startswith(("http", "//", "javascript"))
        assert not any(name.startswith("on") for name in given)
    style = next("".join(parts) for tag, _, parts in reader.elements if tag == "style")
    assert "@import" not in style
    assert "url(" not in style
    assert not re.search(r"https?://", page)


def test_policy_lets_only_the_two_scripts_run(front, read):
    text = render_page(front)
    policy = next(each[1]["content"] for each in read(text).elements if each[1].get("http-equiv"))
    scripts = [body for kind, body in re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S) if not kind]
    hashes = ["sha256-" + base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert len(hashes) == 2
    assert re.findall(r"script-src ([^;]*);", policy) == [" ".join(f"'{each}'" for each in hashes) + " "]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_strings_from_the_file_are_text(front, read):
    for entry in (front["teacher"], *front["candidates"]):
        entry.update(label=HOSTILE, id=HOSTILE + entry["id"], reason=HOSTILE)
        entry["recipe"]["note"] = HOSTILE
        for stage in entry["stages"]:
            stage["layers"][0]["name"] = HOSTILE
    front["front"] = [HOSTILE + each for each in front["front"]]
    front["network"]["name"] = front["data"]["name"] = HOSTILE
    front["data"]["classes"] = [HOSTILE, "\ud800"]
    front["settings"] = {HOSTILE: {HOSTILE: HOSTILE}}
    front["environment"]["command"] = HOSTILE
    for stage in front["census"]["stages"]:
        stage["layers"][0]["name"] = HOSTILE
    front["criticality"][0]["stage"] = HOSTILE
    page = without_library(render_page(front))
    reader = read(page)
    tags = {tag for tag, _, _ in reader.elements}
    assert "img" not in tags
    assert sum(tag == "script" for tag, _, _ in reader.elements) == 3
    assert not any(name.startswith("on") for _, given, _ in reader.elements for name in given)
    assert "{{7*7}}" in visible(reader)
    assert "\x1b" not in page
    assert chart(reader)["points"][0]["label"].startswith("</script><script>alert(1)")


def test_json_in_a_script_cannot_end_it():
    value = {"</script>": ["<!--", "\u2028", "&", "\ud800"]}
    text = embedded_json(value)
    assert not set(text) & set("<>&\u2028\ud800")
    assert json.loads(text) == value


def test_every_candidate_is_there_with_its_recipe(front, page, read):
    reader = read(page)
    cards = [given for tag, given, _ in reader.elements if tag == "details"]
    assert len(cards) == 1 + len(front["candidates"])
    assert len({given["id"] for given in cards}) == len(cards)
    recipes = ["".join(parts) for _, given, parts in reader.elements if given.get("class") == "recipe"]
    expected = [entry["recipe"] for entry in (front["teacher"], *front["candidates"])]
    assert sorted(map(str, map(json.loads, recipes))) == sorted(map(str, expected))
    text = visible(reader)
    for group in ("On the front (8)", "Trained, off the front (5)", "Failed (1)", "Skipped (1)"):
        assert group in text
    assert "the loss became NaN in epoch 12 with every seed" in text
    assert "1,024 ReLUs are below the floor of 4,096" in text


def test_every_accuracy_says_on_which_images(priced, read):
    """A network that is on a front by its seconds alone has no test accuracy here: no other stands in its place."""
    page = without_library(render_page(priced))
    briefs = ["".join(parts) for _, given, parts in read(page).elements if given.get("class") == "brief"]
    assert "114,688 ReLUs · validation 74.84\u00a0%, test 74.72\u00a0%" in briefs
    assert "65,536 ReLUs · validation 69.21\u00a0%" in briefs
    table = page[page.index('<table class="map">') :].split("</table>")[0]
    quick = next(row for row in table.split("<tr") if ">S3</a>" in row)
    assert "<small>not read</small>" in quick and "69.21" not in quick


def test_bars_of_the_stage_map_equal_the_file(front, page):
    rows = bars_by_row(page)
    chosen = sorted((each for each in front["candidates"] if each["on_front"]), key=lambda each: -each["relus"])
    assert len(rows) == 1 + len(chosen)
    (_, full), *reduced = rows.items()
    assert full == [(5, 0), (4, 0), (4, 0), (4, 0)]
    for (_, found), entry in zip(reduced, chosen, strict=True):
        expected = []
        for stage in entry["stages"]:
            kept = sum(layer["kept"] for layer in stage["layers"])
            expected.append((kept, len(stage["layers"]) - kept))
        assert found == expected


def test_stage_map_can_be_read_aloud(page, read):
    words = [
        given["aria-label"] for tag, given, _ in read(page).elements if tag == "svg" and given.get("role") == "img"
    ]
    assert words[: len(words)].count("S2: 2 of 4 ReLU layers kept, 65,536 ReLUs") >= 2
    assert "S1: 0 of 5 ReLU layers kept, 0 ReLUs" in words


def test_chart_data_equal_the_file(front, page, read):
    data = chart(read(page))
    points = {point["key"]: point for point in data["points"]}
    assert len(points) == 16
    start = points[data["start"]]
    assert (start["across"]["relus"], start["role"], start["label"]) == (114_688, "front", "S2 S3 S4, thinned")
    assert start["across"]["delphi"] == pytest.approx(2.91, abs=0.01) and start["fronts"] == ["relus", "delphi"]
    assert start["test"][0] == pytest.approx(74.72)
    assert start["test"][1] < 74.72 < start["test"][2]
    assert data["split"] == "test"
    assert sum(point["role"] == "front" for point in points.values()) == 8
    assert sum(point["test"] is None for point in points.values()) == 7
    assert all(point["key"] in page for point in points.values())


def test_seconds_over_each_link(priced, read):
    """A network that is off the front of ReLUs and the best within some time is shown as that."""
    page = without_library(render_page(priced))
    reader = read(page)
    data = chart(reader)
    assert list(data["titles"]) == ["relus", "lan", "wan"]
    assert data["titles"]["wan"].endswith("estimated, WAN: 100 Mbit/s, 40 ms")
    points = {point["label"]: point for point in data["points"]}
    quick, start = points["S3"], points["S2 S3 S4, thinned"]
    assert (quick["role"], quick["fronts"]) == ("front", ["wan"]) and quick["across"]["wan"] == 0.35
    assert start["fronts"] == ["relus", "lan", "wan"] and start["across"]["lan"] == pytest.approx(0.2593, abs=1e-4)
    assert points["S1"]["across"]["lan"] is None
    text = visible(reader)
    assert "On the front (9)" in text and text.count("on the front by its seconds") >= 1
    assert "0.26 s over LAN, 3.03 s over WAN; 7 round trips, 28.7 MB" in text
    assert "not possible as it is: A layer is known. Got: Swish." in text
    assert "estimated seconds from an image to its class with deepreduce, 2 cores for each party" in text
    assert "estimated, over LAN (teacher 1.24 s); 3.03 s over WAN (teacher 14.1 s)" in text and "With DELPHI" in text
    buttons = [given["value"] for tag, given, _ in reader.elements if given.get("name") == "across"]
    assert buttons == ["relus", "lan", "wan"]


def test_criticality_teacher_settings_and_environment_are_there(page, read):
    reader = read(page)
    text = visible(reader)
    assert "<b>Most critical: S3. Least critical: S1.</b> The least critical loses its ReLUs first." in page
    shares = [given["width"] for tag, given, _ in reader.elements if given.get("class") == "fill"]
    assert shares == ["0.0%", "80.8%", "100.0%", "51.7%"]
    for words in ("0.0944", "65.14", "w = 0.07", "555.5 M", "11,220,132", "distillation.temperature", "2.13.0"):
        assert words in text
    assert "deepreduce reduce resnet18 --data uoft-cs/cifar100 --out run" in text
    assert "x86-64, 2 cores, AVX2" in text


def test_criticality_that_does_not_tell_stages_apart(front, read):
    for row in front["criticality"]:
        row["criticality"] = 0.0
    page = without_library(render_page(front))
    text = visible(read(page))
    assert "All stages measured the same: none is more critical than another." in text
    assert "loses its ReLUs first" not in text and 'class="most"' not in page


def test_one_of_a_kind_is_no_plural(front, read):
    front["candidates"] = [entry for entry in front["candidates"] if entry["relus"] in (114_688, 1_024)]
    front["front"] = [front["candidates"][0]["id"], "teacher"]
    front["candidates"][0]["epochs"] = 1
    front["data"]["validation"] = 1
    text = visible(read(without_library(render_page(front))))
    assert "1 trained candidate and the teacher" in text and "1 epoch, 52 min" in text and "200 epochs" in text
    assert not re.search(r"\b1 (epochs|images|candidates)\b", text)


def test_several_seeds(front, measure, read):
    front["candidates"][2]["test"] = measure(0.7472, 10000, 3)
    text = visible(read(without_library(render_page(front))))
    assert "Over training seeds: mean 74.72 ± 0.20, 3 seeds." in text
    assert "One training seed" not in text


def everything_failed(front):
    for entry in front["candidates"]:
        entry.update(status="failed", validation=None, test=None, relus=None, macs=None, stages=[], latency=None)
    front.update(front=[], criticality=[], exponent=None, seconds=None)


def single_stage(front):
    layers = [{"name": "relu", "relus": 0, "kept": False, "shape": None}]
    front["census"]["stages"] = [{"name": "only", "layers": [{"name": "relu", "relus": 64}]}]
    for entry in (front["teacher"], *front["candidates"]):
        entry.update(stages=[{"name": "only", "relus": 0, "layers": layers}])
    front["candidates"][0]["relus"] = 0


def nulls(front):
    front["teacher"].update(validation=None, test=None, latency=None, stages=None, recipe=None)
    for entry in front["candidates"]:
        entry["test"] = None
    front["candidates"][0]["validation"]["accuracy"] = float("nan")
    front["candidates"][1]["latency"] = {"delphi": float("inf")}


def many(front):
    first = front["candidates"][0]
    first["stages"][0]["layers"] = [{"name": f"r{i}", "relus": 4 + i, "kept": i % 3 == 0} for i in range(60)]
    front["candidates"] = [{**copy.deepcopy(first), "id": f"c{i}", "label": f"candidate {i}"} for i in range(200)]
    front["front"] = ["c7"]


@pytest.mark.parametrize("change", [everything_failed, single_stage, nulls, many])
def test_unusual_runs(front, read, change):
    change(front)
    reader = read(without_library(render_page(front)))
    assert len(chart(reader)["points"]) == 1 + len(front["candidates"])
    assert sum(tag == "details" for tag, _, _ in reader.elements) == 1 + len(front["candidates"])


def test_everything_failed_is_said(front, read):
    everything_failed(front)
    text = visible(read(without_library(render_page(front))))
    assert "No reduced network on the front has been measured" in text
    assert "Failed (15)" in text
    assert "Criticality was not measured" in text


def test_page_is_written_in_one_step(front, tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    write_page(front, path)
    assert path.read_text(encoding="utf-8") == render_page(front)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunError, match="no space is left"):
        write_page(front, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("package", ["plotly.offline", "jinja2"])
def test_missing_package_names_the_extra(front, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"deepreduce\[report\]"):
        write_page(front, tmp_path / "page.html")


def test_a_foreign_file_is_refused(tmp_path):
    with pytest.raises(RunError, match="format"):
        write_page({"format": "x"}, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
