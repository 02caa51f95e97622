"""`--import MODULE` of every command: the user's own attention mechanisms and kinds of datasets.

Modules are imported only if the user names them, never because of a checkpoint.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from dymn.config import check
from dymn.errors import ConfigError

IMPORTED: list[str] = []
"""The names of the modules that were imported."""


def import_module(name: str) -> None:
    """Import a module by its name, which may be that of a file in the current folder, or by the path of its file.

    Its folder is appended to `sys.path`, so that processes that decode can import it too.

    Raises:
        ConfigError: if there is no such module, or importing it fails.
    """
    path = Path(os.path.expanduser(name))
    is_file = path.suffix == ".py"
    check(not is_file or path.is_file(), f"--import {name}: there is no such file. Give the path of a Python file.")
    folder, module = (str(path.parent.resolve()), path.stem) if is_file else (os.getcwd(), name)
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise _failed(name, error) from error
        raise ConfigError(
            f"--import {name}: there is no module {error.name}. Give the name of an installed module, or the path of a "
            "Python file."
        ) from error
    except Exception as error:
        raise _failed(name, error) from error
    if module not in IMPORTED:
        IMPORTED.append(module)
    origin = getattr(imported, "__file__", None)
    if is_file and (origin is None or not path.samefile(origin)):
        raise ConfigError(f"--import {name}: another module is called {module} ({origin}). Rename the file.")


def _failed(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"--import {name} fails: {type(error).__name__}: {error}. DYMN_DEBUG=1 shows the traceback; `python -c "
        "'import …'` imports the module alone."
    )
