"""The command line: ``triselect env | play | bench | report``."""

import sys
from importlib.util import find_spec

NEEDED = ("typer", "rich", "safetensors", "plotly", "jinja2")


def main() -> None:
    """Entry point of ``triselect``. Says what to install where the extra `cli` is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(
            f"triselect: the command line needs {', '.join(missing)}: pip install 'triselect[cli]'"
        )
    from triselect.report.commands import app

    app()


if __name__ == "__main__":
    main()
