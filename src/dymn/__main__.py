"""`python -m dymn` is the command `dymn`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is no error while it is being imported either."""
    try:
        from dymn.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
