"""`python -m dymn` is the command `dymn`."""

import sys

from dymn.system import signals


def main() -> None:
    """Run the command line, in which signals are no errors from the first import on."""
    signals.watch()
    try:
        from dymn.cli import main as run

        run()
    except BaseException as error:
        if (ended := signals.ended(error)) is None:
            raise
        sys.exit(ended.exit_code)
    finally:
        signals.finish()


if __name__ == "__main__":
    main()
