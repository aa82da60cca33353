"""The stages: one runnable module per kind of work. Imports state and bible_data, never daemon, never another stage."""

import gc
import sys

COLLECTOR_PACE = gc.get_threshold()
if sys.argv[:1] == ["-m"]:  # this process is about to import a million values that stay, and Python's collector would look at
    gc.set_threshold(100_000, 20, 100)  # them again and again: a fifth of a start; `stages.runtime.run` goes back to its own pace
