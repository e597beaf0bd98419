"""The verbs as the command line has them, in this process."""

import sys

import pytest

from open_kandinsky import evaluate, train

MAINS = {"train": train.main, "evaluate": evaluate.main}


def called(verb, *typed):
    """Its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"open-kandinsky {verb}", *map(str, typed)])
        try:
            MAINS[verb]()
        except SystemExit as stop:
            return stop.code
    return 0
