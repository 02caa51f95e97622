"""`python -m dymn` is the command `dymn`."""

from dymn.cli import main

if __name__ == "__main__":
    main()
