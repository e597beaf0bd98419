"""Every command line that README shows is one that its verb takes, and every path that it links to is there."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from open_kandinsky.cli import VERBS
from open_kandinsky.config import compose, sweep

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FENCED = "\n".join(text for language, text in FENCES if not language).replace("\\\n", " ")
VARIABLES = dict(re.findall(r'^([A-Z]+)="(.*)"$', FENCED, re.MULTILINE))
PYTHON = [text for language, text in FENCES if language == "python"]
PYTHON += re.findall(r"^python - <<'END'\n(.*?)^END$", FENCED, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^open-kandinsky (.*?)(?:  #.*)?$", FENCED, re.MULTILINE)


def words(command):
    for name, value in VARIABLES.items():
        command = command.replace(f"${name}", value)
    return [word for word in shlex.split(command) if word != "..."]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command):
    verb, *typed = words(command)
    assert verb in VERBS
    overrides = [word for word in typed if word != "-m"]
    for job in sweep.jobs(compose.parse(overrides)) if "-m" in typed else [overrides]:
        compose.checked(verb, job, compose.CONF, complete=False)


def test_the_commands_were_found():
    assert len(COMMANDS) > 20 and set(VARIABLES) == {"SHARDS", "CACHE", "SMALL"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z][a-z-]+)", FENCED))))
def test_a_target_is_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):]+)\)", TEXT))))
def test_a_link_leads_somewhere(path):
    assert (ROOT / path.partition("#")[0]).exists()


def test_the_python_lines_run_in_one_process_in_order_twice(system, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(system)
    (tmp_path / "out" / "pair").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "out" / "pair" / "00000.png")
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON) >= 2
    for _ in range(2):
        names = {}
        for text in PYTHON:
            exec(compile(text, "README.md", "exec"), names)
        assert names["pictures"][0].size == (32, 32) and names["image_emb"].shape == (1, 32)
