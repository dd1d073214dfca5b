"""python -m ternlm: the command line."""

from . import _command_line

_command_line()
