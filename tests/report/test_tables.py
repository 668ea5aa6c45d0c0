"""Tables as a terminal of 80 and of 160 columns shows them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deepreduce.errors import RunError
from deepreduce.report import criticality_table, front_table, plan_table, profile_table

WIDTHS = [80, 160]


def shown(table, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "\u2026" not in stream.getvalue()
    return lines


def row(lines: list[str], start: str) -> list[str]:
    return next(line for line in lines if line.startswith(start)).split()


@pytest.mark.parametrize("width", WIDTHS)
def test_front_table(front, width):
    lines = shown(front_table(front), width)
    assert "Pareto front: resnet18 on uoft-cs/cifar100" in lines[0]
    found = row(lines, "S2 S3 S4, thinned ")
    assert found[4:] == ["114,688", "4.9x", "74.84", "74.72", "+0.26", "2.91", "s"]
    assert row(lines, "ResNet18")[-7:] == ["557,056", "-", "74.64", "74.46", "-", "12.6", "s"]
    text = "\n".join(lines)
    assert "73.6-76.0" in text
    assert "73.9-75.6" in text
    for number in ("229,376", "196,608", "57,344", "49,152", "28,672", "14,336", "12,288"):
        assert number in text
    assert "98,304" not in text
    assert "4.9x fewer ReLUs with no measurable loss" in " ".join(text.split())
    assert "estimated from DELPHI's logs, without network time" in " ".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_front_table_names_what_was_left_out(front, width):
    text = " ".join("\n".join(shown(front_table(front), width)).split())
    assert "Skipped S4, thinned, alpha 0.5, rho 0.5: 1,024 ReLUs are below the floor of 4,096" in text
    assert "Failed S3, thinned, alpha 0.5: the loss became NaN in epoch 12 with every seed" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_front_table_in_seconds(priced, width):
    """Our engine's seconds take the place of DELPHI's; what is there for its seconds alone is marked."""
    lines = shown(front_table(priced), width)
    text = " ".join("\n".join(lines).split())
    assert next(line for line in lines if "114,688" in line).split()[-4:] == ["0.26", "s", "3.03", "s"]
    assert row(lines, "S3*")[-4:] == ["0.15", "s", "0.35", "s"]
    assert "* the most accurate in its time" in text
    assert "LAN: 1,000 Mbit/s, 1 ms; WAN: 100 Mbit/s, 40 ms: estimated seconds from an image to its class" in text
    assert "DELPHI" not in text


def test_networks_that_cannot_run_privately_have_no_seconds(priced):
    for entry in (priced["teacher"], *priced["candidates"]):
        entry["private"] = {"reason": "A layer is known. Got: Swish."}
    priced["fronts_in_seconds"] = {"lan": [], "wan": []}
    text = " ".join("\n".join(shown(front_table(priced), 160)).split())
    assert "No network of this run can run privately as it is" in text
    assert "Latency" not in text and "DELPHI" not in text and "LAN" not in text


def test_a_network_that_is_no_faster_says_so(priced):
    chosen = next(entry for entry in priced["candidates"] if entry["label"] == "S2 S3 S4, thinned")
    text = " ".join("\n".join(shown(front_table(priced), 160)).split())
    assert "no faster than the full network" not in text
    chosen["private"]["online"]["seconds"] = dict(priced["teacher"]["private"]["online"]["seconds"])
    text = " ".join("\n".join(shown(front_table(priced), 160)).split())
    assert (
        "with no measurable loss" in text and "no faster than the full network" in text and "takes a round trip" in text
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "deepreduce", "granularity": "element"}, "Method: deepreduce."),
        ({"method": "snl", "granularity": "channel"}, "Method: snl by channel."),
        (
            {"method": "deepreduce-masks", "granularity": "element", "most_layers": 6, "search_epochs": 4},
            "Method: deepreduce-masks by element, in at most 6 layers, 4 epochs of search, counted with the training.",
        ),
        ({"method": "deepreduce-masks", "most_layers": 1}, "Method: deepreduce-masks, in at most 1 layer."),
    ],
)
def test_front_table_says_how_the_networks_were_found(front, settings, words):
    front["settings"] = settings
    assert words in " ".join("\n".join(shown(front_table(front), 160)).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_front_table_shows_mean_and_deviation_of_seeds(front, measure, width):
    front["candidates"][2]["validation"] = measure(0.7484, 5000, 3)
    text = " ".join("\n".join(shown(front_table(front), width)).split())
    assert "0.20" in text
    assert "mean" in text
    assert "mean" not in " ".join(shown(front_table({**front, "front": []}), width))


def test_change_is_on_validation_images_where_a_test_accuracy_is_missing(front):
    front["candidates"][2]["test"] = None
    lines = shown(front_table(front), 160)
    assert "against the teacher, validation images" in "\n".join(lines)
    assert "+0.20" in row(lines, "S2 S3 S4, thinned ")


def test_summary_that_the_test_images_refute(front, measure):
    front["candidates"][2]["test"] = measure(0.60, 10000)
    text = " ".join("\n".join(shown(front_table(front), 160)).split())
    assert "4.9x fewer ReLUs: the validation images show no loss, the test images do" in text
    assert "with no measurable loss" not in text


def test_summary_where_the_teacher_guesses(front, measure):
    front["teacher"]["validation"] = measure(0.01, 5000)
    text = " ".join("\n".join(shown(front_table(front), 160)).split())
    assert "not measurably better than guessing" in text and "with no measurable loss" not in text


def test_summary_where_one_stage_alone_beats_the_teacher(front, measure):
    front["teacher"]["validation"] = measure(0.66, 5000)
    text = " ".join("\n".join(shown(front_table(front), 160)).split())
    assert "The teacher seems under-trained, ReLUs in S3 alone do better" in text
    assert "with no measurable loss" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_criticality_table(front, width):
    lines = shown(criticality_table(front), width)
    assert row(lines, "S3")[:5] == ["S3", "65,536", "69.21", "65.14", "0.0944"]
    text = " ".join("\n".join(lines).split())
    assert "Most critical: S3. Least critical: S1." in text
    assert "w = 0.07" in text
    front["criticality"][2].update(criticality=None, accuracy=None)
    text = "\n".join(shown(criticality_table(front), width))
    assert "Most critical: S2." in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.0, 0.0, 0.0, 0.0), "All stages measured the same: none is more critical than another."),
        ((0.1, 0.0, 0.1, 0.0), "Most critical: S1, S3. Least critical: S2, S4."),
        ((None, 0.1, None, None), "Criticality was not measured for two stages or more."),
    ],
)
def test_stages_that_are_level(front, values, words):
    for row, value in zip(front["criticality"], values, strict=True):
        row["criticality"] = value
    assert words in " ".join("\n".join(shown(criticality_table(front), 80)).split())


def plan(front) -> dict:
    jobs = [
        {"id": each["id"], "label": each["label"], "kind": "candidate", "relus": each["relus"], "macs": each["macs"]}
        | {"epochs": 200, "seeds": 3, "hours": 1.25, "status": "to do", "reason": ""}
        for each in front["candidates"]
    ]
    jobs[0] |= {"kind": "teacher", "status": "finished"}
    for place in (1, 2):
        jobs[place] |= {"status": "skipped", "reason": "above the budget of 50,000 ReLUs", "epochs": 0, "hours": 0.0}
    return {"jobs": jobs, "hours": 8.2, "workers": 2, "note": "measured on 40 steps"}


@pytest.mark.parametrize("width", WIDTHS)
def test_plan_table(front, width):
    lines = shown(plan_table(plan(front)), width)
    text = " ".join("\n".join(lines).split())
    assert "Plan: 15 jobs, 12 to do" in lines[0]
    assert "about 8.2 h with 2 workers" in text
    assert "15.0 h" in text  # 12 jobs of 1.25 hours, one after the other
    assert "measured on 40 steps" in text
    found = row(lines, "S3 S4 ")
    assert found[2:] == ["candidate", "98,304", "555.5", "M", "200", "3", "75", "min", "to", "do"]
    assert next(line for line in lines if "196,608" in line).split()[2:] == [
        "candidate",
        "196,608",
        "555.5",
        "M",
        "-",
        "-",
        "-",
        "skipped",
    ]
    assert "Skipped S2 S3; S2 S3 S4, thinned: above the budget of 50,000 ReLUs" in text  # once, below the table


def test_plan_of_nothing():
    text = "\n".join(shown(plan_table({"jobs": [], "hours": None, "workers": 1, "note": ""}), 80))
    assert "0 jobs" in text
    assert "1 worker." in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("layers", [False, True])
def test_profile_table(front, width, layers):
    census, reduced = front["census"], front["candidates"][4]
    stages = [
        dict(old, relus=new["relus"], layers=[a | b for a, b in zip(old["layers"], new["layers"], strict=True)])
        for old, new in zip(census["stages"], reduced["stages"], strict=True)
    ]
    profile = {"network": "resnet18", "input": [3, 32, 32], "notes": ["one image"], "stages": stages, "before": census}
    profile |= {key: reduced[key] for key in ("relus", "macs", "params")}
    lines = shown(profile_table(profile, layers=layers), width)
    assert "resnet18, input 3x32x32" in lines[0]
    assert row(lines, "S2")[1:6] == ["16x16", "2", "of", "4", "32,768"]
    assert row(lines, "Total")[1:3] == ["57,344", "557,056"]
    text = " ".join("\n".join(lines).split())
    assert "ReLUs: 9.7x fewer. MACs: 4.0x fewer." in text
    assert "139.3 M" in text
    assert ("555.5 M" in text) is not layers
    if layers:
        assert "resnet.py:" in text
        kept, removed = (
            [word for word in row(lines, name) if not word.startswith("resnet.py")]
            for name in ("  layer2.0.relu1", "  layer2.0.relu2 +")
        )
        assert kept[1:5] == ["64x16x16", "kept", "16,384", "32,768"]
        assert removed[2:6] == ["64x16x16", "removed", "0", "32,768"]
    else:
        assert "layer2" not in text


def test_profile_table_without_comparison(front):
    lines = shown(profile_table({"network": "net", "input": [3, 32, 32], **front["census"]}), 80)
    assert row(lines, "Total") == ["Total", "557,056", "555.5", "M", "11,220,132"]
    assert "before" not in "\n".join(lines)


def test_names_are_text_and_cannot_steer_the_terminal(front):
    front["candidates"][2]["label"] = "[red]x[/red] \x1b[2J\u202eend"
    front["network"]["name"] = "[bold]\x07net"
    text = "\n".join(shown(front_table(front), 160))
    assert "[red]x[/red]" in text
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


@pytest.mark.parametrize("table", [front_table, criticality_table])
def test_a_foreign_file_is_refused(table):
    with pytest.raises(RunError, match="format"):
        table({"format": "something"})


@pytest.mark.parametrize("table", [front_table, criticality_table])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_in_which_everything_failed(front, table, width):
    for entry in front["candidates"]:
        entry.update(status="failed", reason="no memory", validation=None, test=None, relus=None, latency=None)
    front.update(front=[], criticality=[], exponent=None, seconds=None)
    front["teacher"].update(validation=None, test=None, latency=None, status="failed")
    assert shown(table(front), width)
