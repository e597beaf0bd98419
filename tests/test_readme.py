"""Every command line that README shows is one that its verb takes, and every path that it links to is there."""

import re
import shlex
from pathlib import Path

import pytest

from open_kandinsky import command_line, configuration, sweeps
from open_kandinsky.cli import VERBS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FENCED = "\n".join(text for language, text in FENCES if not language).replace("\\\n", " ")
VARIABLES = dict(re.findall(r'^([A-Z]+)="(.*)"$', FENCED, re.MULTILINE))
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
    for job in sweeps.jobs(command_line.parse(overrides)) if "-m" in typed else [overrides]:
        configuration.checked(verb, job, configuration.CONF, complete=False)


def test_the_commands_were_found():
    assert len(COMMANDS) > 20 and set(VARIABLES) == {"SHARDS", "CACHE"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z][a-z-]+)", FENCED))))
def test_a_target_is_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^):]+)\)", TEXT))))
def test_a_link_leads_somewhere(path):
    assert (ROOT / path.partition("#")[0]).exists()
