"""Tests of every kind.

They start some hundred processes. Where Python is told to keep no bytecode, each of them would compile all of
services/ and gen/ anew, a third of its start: here it is kept, in __pycache__, which git ignores.
"""

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
