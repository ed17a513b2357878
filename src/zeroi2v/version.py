"""Which version of zeroi2v is this? pyproject.toml reads the version here."""

__version__ = "0.1.0"
