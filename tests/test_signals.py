"""Ctrl-C and SIGTERM at moments that are hard to hit.

The exit code is that of the signal, and there is no traceback.
"""

import os
import signal
import subprocess
import sys

import pytest

from dymn.system.signals import Ended, ended

PROGRAM = """
import sys
from dymn import cli
from dymn.__main__ import main

def work():
    code = compile(sys.argv[1], "work", "exec")
    exec(code, {})

cli.main = work
if __name__ == "__main__":
    main()
"""
"""The command with work of our own; started with -m as `python -m dymn`, which Python ends in another way than a
script.
"""
HIT = (
    "import atexit, os, signal, sys, threading, time; "
    "hit = lambda: (os.kill(os.getpid(), signal.{name}), time.sleep(1)); "
)
MOMENTS = {
    "in an exec of text": ("exec('hit()', globals())", {130, 143}),
    "made into another error": ("\ntry:\n    hit()\nfinally:\n    raise RuntimeError('a reader died')", {130, 143}),
    "dropped, and then an error": (
        "\ntry:\n    hit()\nexcept BaseException:\n    pass\nraise ImportError('half of it')",
        {130, 143},
    ),
    "made into another exit": ("\ntry:\n    hit()\nexcept KeyboardInterrupt:\n    sys.exit(1)", {130, 143}),
    "dropped by others": (
        "\ntry:\n    hit()\nexcept BaseException:\n    pass\ntime.sleep(9)\nprint('went on')",
        {130, 143},
    ),
    "while threads end": (
        "threading.Thread(target=lambda: (threading.main_thread().join(), hit())).start()",
        {130, 143},
    ),
    "among the last calls": ("atexit.register(hit)", {130, 143}),
    "among the last calls after another": ("atexit.register(hit); hit()", {130, 143}),
    "while Python takes itself down": (
        "last = os.kill, os.getpid(), int(signal.{name})\nclass Last:\n    def __del__(self, last=last):\n"
        "        last[0](*last[1:])\nsys.last = Last()",
        {0},
    ),
    "in a copy of the process": (
        "\nif not (pid := os.fork()):\n    hit()\n    os._exit(9)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
        {0},
    ),
    "dropped just before the end": (
        "\ntry:\n    hit()\nexcept BaseException:\n    pass\natexit.register(time.sleep, 1.5)",
        {0},
    ),
}


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_command_with_its_code_at_any_moment(moment, number, tmp_path):
    text, codes = MOMENTS[moment]
    (tmp_path / "program.py").write_text(PROGRAM)
    work = (HIT + text).format(name=number.name)
    done = subprocess.run(
        [sys.executable, "-m", "program", work], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in codes and done.returncode in (0, 128 + number), done.stderr
    assert "went on" not in done.stdout and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_signals_that_the_parent_ignores_stay_ignored_and_a_second_sigterm_is(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    ignored = HIT.format(name="SIGINT") + "hit()"
    twice = (
        HIT.format(name="SIGTERM")
        + "\ntry:\n    hit()\nexcept KeyboardInterrupt:\n    hit()\n    print('cleared away')\n    raise"
    )
    for work, code, before in (
        (ignored, 0, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "),
        (twice, 143, ""),
    ):
        start = f"{before}import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'program', sys.argv[1]])"
        command = [sys.executable, "-c", start, work]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert done.stdout == ("cleared away\n" if code else "")


def test_what_an_error_arose_from():
    assert ended(ValueError()) is None and ended(SystemExit(1)) is None
    assert ended(Ended(signal.SIGTERM)).exit_code == 143 and ended(KeyboardInterrupt()).exit_code == 130
