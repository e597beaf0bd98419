"""Every claim of speed, measured: a process for each file of claims/, the table here, results.json at the end.

    make bench                     all of them
    make bench ONLY=decoder        the files whose names begin so; the other entries of results.json stay
    make bench QUICK=1             small sizes: to see that all of it runs. No result is written
    make bench GATE=1              fails where a ratio is under 0.8 of baseline.json's

Close other programs first: a ratio of two programs that take turns stands a busy machine better than seconds do, and
not well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from open_kandinsky.core import files

HERE = Path(__file__).parent
RESULTS, BASELINE = HERE / "results.json", HERE / "baseline.json"
LOSS = 0.8  # of a baseline's ratio, before the gate closes: medians of seven turns differ by less

Entry = dict[str, Any]


def chosen(only: str | None) -> list[Path]:
    """ValueError for a name that no file of claims has."""
    scripts = sorted((HERE / "claims").glob("*.py"))
    found = [file for file in scripts if file.stem.startswith(only or "")]
    if not found:
        raise ValueError(f"ONLY={only}: there are {', '.join(file.stem for file in scripts)}")
    return found


def measured(file: Path, quick: bool) -> list[Entry]:
    """The entries of one file, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "entries.json"
        asked = [sys.executable, str(file), "--json", str(out), *(["--quick"] if quick else [])]
        print(f"\n{file.stem}", flush=True)
        subprocess.run(asked, check=True)
        return [entry | {"of": file.stem} for entry in read(out)]


def read(path: Path) -> list[Entry]:
    return json.loads(path.read_text()) if path.is_file() else []


def losses(entries: list[Entry], baseline: list[Entry]) -> list[str]:
    """The claims whose ratio has fallen."""
    before = {entry["claim"]: entry["ratio"] for entry in baseline if entry["ratio"]}
    pairs = [(entry, before[entry["claim"]]) for entry in entries if entry["ratio"] and entry["claim"] in before]
    return [f"{e['claim']}: {e['ratio']:.2f}x, was {was:.2f}x" for e, was in pairs if e["ratio"] < LOSS * was]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gate", action="store_true")
    args = parser.parse_args()
    scripts = chosen(args.only)
    with ThreadPoolExecutor(2 if args.quick else 1) as pool:  # figures that mean nothing may disturb each other
        entries = [entry for of_file in pool.map(partial(measured, quick=args.quick), scripts) for entry in of_file]
    if not args.quick:
        measured_now = {entry["of"] for entry in entries}  # a GPU's claims measure nothing where there is none
        kept = [entry for entry in read(RESULTS) if entry["of"] not in measured_now]
        files.write(RESULTS, json.dumps(sorted(kept + entries, key=lambda e: e["of"]), indent=2) + "\n")
    if args.gate and (fallen := losses(entries, read(BASELINE))):
        sys.exit("slower than baseline.json:\n" + "\n".join(fallen))


if __name__ == "__main__":
    main()
