"""The paper's comparison of methods, row by row."""

from __future__ import annotations

from channel_pruning import comparison_row


def test_a_row_of_the_papers_comparison() -> None:
    front = {
        "data": {"name": "digits"},
        "settings": {"method": "channel-pruning"},
        "teacher": {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.75}},
    }
    entry = {"label": "S1", "validation": {"accuracy": 0.5}, "test": {"accuracy": 0.5}, "macs": 7, "relus": 3}
    row = comparison_row(front, entry)
    assert (row["baseline"], row["pruned"], row["change"], row["split"]) == (75.0, 50.0, -25.0, "test")
    assert comparison_row(front, {**entry, "test": None})["split"] == "validation"
