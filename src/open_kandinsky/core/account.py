"""Whether Weights & Biases can be written to: known before any work is done."""

import os
from importlib.util import find_spec

from open_kandinsky.core.errors import UserError

OFFLINE = ("offline", "disabled", "dryrun")  # what WANDB_MODE may say


def check(asked: str, remedy: str) -> None:
    """ValueError where wandb is not installed, or not logged in; `remedy` says what to ask for instead.

    Nothing is asked of a person, and nothing of its server where WANDB_MODE says so.
    """
    if find_spec("wandb") is None:
        raise UserError(f"{asked} needs: pip install open-kandinsky[wandb]")
    if os.environ.get("WANDB_MODE") in OFFLINE:
        return
    import wandb

    try:
        known, why = wandb.login(prompt=False), "this machine is not logged in"
    except wandb.Error as error:
        known, why = False, str(error).strip().splitlines()[0].rstrip(".")
    if not known:
        raise UserError(f"{asked}: {why}: run `wandb login`, or {remedy}")
