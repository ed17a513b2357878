"""When is PyAV loaded? When the first video is opened. A command that opens none needs no PyAV.

The other files of this folder take `av` from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zeroi2v.errors import ConfigError

if TYPE_CHECKING:
    import av as av
    import av.sidedata.sidedata
else:

    class _PyAV:
        """The module `av`, loaded when one of its names is first used."""

        def __getattr__(self, name):
            """A name of the module. ConfigError, with what to install, where PyAV is missing."""
            try:
                import av as module
            except ImportError as error:
                raise ConfigError(
                    f"PyAV reads and writes videos, but cannot be loaded ({error}): pip install av"
                ) from error
            value = vars(self)[name] = getattr(module, name)  # found at once from now on
            return value

    av = _PyAV()


def require_pyav() -> None:
    """ConfigError, with what to install, where PyAV is missing."""
    _ = av.open
