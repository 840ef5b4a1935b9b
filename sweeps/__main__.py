"""The command kd-sweep, also as `python -m sweeps`."""

import sys


def main() -> None:
    """Run it; where a package that it needs is not installed, say how to install it."""
    try:
        from sweeps import cli

        cli.main()
    except ModuleNotFoundError as error:
        print(f"error: kd-sweep needs {error.name}: pip install 'kdsweep[sweep]'.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
