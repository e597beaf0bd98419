"""The table in README.md here, as results.json has it: python benchmarks/table.py"""

import json
from pathlib import Path
from typing import Any

HEADER = ["| claim | ours, s | theirs, s | ratio | goal | spread | error |", "|---|---|---|---|---|---|---|"]


def row(entry: dict[str, Any]) -> str:
    forms = {"ours_s": ".3g", "theirs_s": ".3g", "ratio": ".2f", "goal": ".3g", "spread": ".0%", "error": ".0e"}
    shown = {name: "" if entry.get(name) is None else format(entry[name], form) for name, form in forms.items()}
    shown["ratio"] += "x"
    return f"| `{entry['of']}`: {entry['claim']} | {' | '.join(shown.values())} |"


def table(entries: list[dict[str, Any]]) -> str:
    """Of comparisons; a figure that stands alone is in results.json only."""
    return "\n".join(HEADER + [row(entry) for entry in entries if entry["ratio"] is not None])


if __name__ == "__main__":
    print(table(json.loads(Path(__file__).with_name("results.json").read_text())))
