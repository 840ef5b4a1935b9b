"""The command kd-train, also as `python -m kdtrain`."""

import sys


def main() -> None:
    """Run it; where a package that it needs is not installed, say how to install it."""
    try:
        from kdtrain import cli

        cli.main()
    except ModuleNotFoundError as error:
        print(f"error: kd-train needs {error.name}: pip install 'kdsweep[train]'.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
