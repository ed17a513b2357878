"""`zeroi2v data`: make, check or copy videos. Each of its commands has a file."""

from __future__ import annotations

from zeroi2v.cli import data_check, data_reencode, data_synthetic
from zeroi2v.cli.options import Commands


def add(commands: Commands) -> None:
    """Declare the command and the commands below it."""
    below = Commands(commands.add("data", "make, check or copy videos"))
    for command in (data_synthetic, data_check, data_reencode):
        command.add(below)
