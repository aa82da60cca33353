"""The stages: one runnable module per kind of work. Imports state and bible_data, never daemon, never another stage."""

import gc
import sys

if sys.argv[:1] == ["-m"]:  # this process is a stage, about to import: Python's collector would look at it all again and again,
    gc.disable()  # a fifth of the start (docs/LOG.md); `stages.runtime.run` enables it
