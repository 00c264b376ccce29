"""The `dalorra` command, also as `python -m dalorra`."""

import sys


def main() -> None:
    """Run the command line, or say what is missing where only the light client is installed."""
    try:
        from dalorra.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "filelock"):
            raise
        sys.exit(
            f"the dalorra command needs {error.name}; pip install 'dalorra-service[server]' "
            "(the bare package is the client only)"
        )
    app()


if __name__ == "__main__":
    main()
