"""What results are computed by: the version of this package, and plugins."""

VERSION = "0.2.0"
PLUGINS: dict[str, str] = {}
"""The files of the plugins in use, and the SHA-256 of what they are; `plugins.use` fills it."""
SOURCES: set[str] = set()
"""Their files and, where one is in a package, the files of that."""


def made_by() -> list[str]:
    """What results hang on beside their spec and their rows."""
    return [VERSION, *sorted(PLUGINS.values())]
