"""`python -m dymn` is the command `dymn`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM are no errors while it is being imported either."""
    try:
        from dymn.cli import main as run

        run()
    except KeyboardInterrupt as error:
        sys.exit(getattr(error, "exit_code", 130))


if __name__ == "__main__":
    main()
