"""The command kd-report, also as `python -m analysis`."""

import sys


def main() -> None:
    """Run it; where a package that it needs is not installed, say how to install it."""
    try:
        from analysis import cli

        cli.main()
    except ModuleNotFoundError as error:
        print(f"error: kd-report needs {error.name}: pip install 'kdsweep[report]'.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
