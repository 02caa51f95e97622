"""`python -m dymn` is the command `dymn`."""

from dymn.system import signals


def main() -> None:
    """Run the command line, in which signals are no errors from the first import on."""
    signals.watch()
    try:
        from dymn.cli import main as run

        run()
    except BaseException as error:
        ended = signals.ended(error)
        if ended is None and not isinstance(error, SystemExit):
            raise
        code = ended.exit_code if ended is not None else error.code if isinstance(error, SystemExit) else None
    else:
        code = 0
    finally:
        try:
            signals.finish()
        except signals.Ended as error:  # it has arrived just before
            code = error.exit_code
            signals.finish()
    signals.leave(code)


if __name__ == "__main__":
    main()
