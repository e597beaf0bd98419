"""Checks the login to Weights & Biases before any work is done."""

import os
from importlib.util import find_spec

from open_kandinsky.core.errors import UserError

OFFLINE = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


def check(option: str, remedy: str) -> None:
    """ValueError where wandb is not installed or not logged in: `option` needs it, `remedy` is what to choose instead.

    Never prompts. With WANDB_MODE=offline the server is not contacted.
    """
    if find_spec("wandb") is None:
        raise UserError(f"{option} needs: pip install open-kandinsky[wandb]")
    if os.environ.get("WANDB_MODE") in OFFLINE:
        return
    import wandb

    try:
        logged_in, why = wandb.login(prompt=False), "this machine is not logged in"
    except wandb.Error as error:
        logged_in, why = False, str(error).strip().splitlines()[0].rstrip(".")
    if not logged_in:
        raise UserError(f"{option}: {why}: run `wandb login`, or {remedy}")
