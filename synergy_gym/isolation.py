"""`synergy-gym verify` starts over in an interpreter that no folder can reach into.

Who checks a board of somebody else often stands in its folder, and Python and its libraries look
around there: for modules (`python -m`, an empty or relative entry of PYTHONPATH), for the plug-ins
of distributions, for settings (numba's `.numba_config.yaml`). So the command replaces itself before
anything else is imported. In its place runs `isolated.py`, as a program,

- with `-E -P`: neither environment variables nor the current folder change where Python looks
  (`-I` would also drop the user's own site-packages, where this package may be installed);
- with the folder of this package as its current folder.

What Python itself imports before this file's first line is out of reach (docs/verification.md). No
other module is imported here, not even one of the standard library that is not loaded already.
"""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
COMMAND = "verify"
"""The command that starts over."""
_NAMES = ("synergy_gym", "synergy_gym.__main__")


def is_command() -> bool:
    """Whether this process has just been started as `synergy-gym verify`."""
    program, *arguments = sys.argv or [""]
    if arguments[:1] != [COMMAND]:
        return False
    if program == "-m":  # so it is called until Python has found the module
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") in _NAMES
    return os.path.basename(program).removesuffix(".exe") == "synergy-gym"


def start_over() -> None:
    """Replace this process by an isolated one with the same arguments; does not return."""
    folder, arguments = os.getcwd(), sys.argv[1:]
    user_site = ["-s"] if sys.flags.no_user_site else []
    program = [sys.executable, "-E", "-P", *user_site, os.path.join(HERE, "isolated.py")]
    os.chdir(HERE)
    if os.name == "posix":
        os.execv(program[0], [*program, folder, *arguments])
    from subprocess import call  # elsewhere nobody would wait for the new process

    raise SystemExit(call([*program, folder, *arguments]))
