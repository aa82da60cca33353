"""A bot as a process of its own: `python -m tests.process.bot_program WORKSPACE URL TOKEN OWNER [PRELUDE]`, until SIGTERM.

PRELUDE is Python, run first. Prints `ready`, and at the end how long the stop took.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time

from daemon import logs
from daemon.phone.bot import Bot, Pace
from daemon.phone.telegram_settings import Secret, Telegram
from state.workspace import Workspace

FAST = Pace(poll_s=5, look_s=0.05, gap_s=0.0, card_s=3600.0, host_s=60.0, retry_s=0.02, longest_retry_s=0.1)

if __name__ == "__main__":
    root, url, token, owner = sys.argv[1:5]
    exec("".join(sys.argv[5:]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    workspace = Workspace.at(root)
    logs.set_up(workspace, None)
    bot = Bot(workspace, Telegram(token=Secret(token), owner_id=int(owner), chat_id=int(owner), base_url=url), FAST)
    bot.start()
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM])
    began = time.monotonic()
    bot.stop()
    print(time.monotonic() - began, flush=True)
    atexit._run_exitfuncs()  # a prelude's last words
    sys.stdout.flush()
    os._exit(0)  # as the command line ends
