"""Where the commands' configuration files lie, and what is known of them without Hydra."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1] / "conf"  # a wheel's, or a checkout's
