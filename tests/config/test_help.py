"""What `open-kandinsky VERB --help` prints: every key and group of the verb, soon and without importing the verb."""

import subprocess
import sys

import pytest
import yaml
from fixtures.programs import environment

from open_kandinsky.cli import VERBS
from open_kandinsky.config import CONF
from open_kandinsky.config.help import keys, verb_help

# Prints the verb's help, and on stderr which of the slow packages that imported.
PROGRAM = """
import sys
from open_kandinsky import cli
sys.argv = ["open-kandinsky", {verb!r}, "--help"]
cli.main()
print(sorted({{"torch", "lightning", "hydra", "wandb"}} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_and_group_is_shown(verb):
    told = verb_help(verb)
    assert (
        told.startswith(f"usage: open-kandinsky {verb} [key=value ...]\n\n") and f"open-kandinsky {verb} " in told[40:]
    )
    tree = yaml.safe_load((CONF / f"{verb}.yaml").read_text())
    for key, value in tree.items():
        assert key == "defaults" or f"\n  {key}=" in told or (isinstance(value, dict) and f"\n  {key}." in told), key
    for entry in tree.get("defaults", []):
        if isinstance(entry, dict) and "hydra" not in entry:
            assert f"\n  {next(iter(entry)).lstrip('/')}=" in told, entry


def test_a_key_has_its_default_and_its_comment():
    found = {key.name: key for key in keys(CONF / "generate.yaml")}
    assert found["count"].value == "1" and found["count"].comment.startswith("pictures of each prompt")
    assert (
        found["negative_decoder_prompt"].value == '""'
        and "no picture at all" in found["negative_decoder_prompt"].comment
    )
    told = verb_help("train")
    assert "movq_official, prior" in told, "a group's options"
    assert "cached, folder, shards, webdataset\n" in told, "those of data/filters are another group's"


def test_it_imports_neither_torch_nor_hydra():
    command = [sys.executable, "-c", PROGRAM.format(verb="train")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == verb_help("train") and done.stderr == "[]\n"
