"""A small process above the agent: if the agent is killed, all it started ends with it.

Ray's daemons detach themselves, and SLURM does not find them everywhere. It also tells
the other nodes, which would else wait for half a minute of silence.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import replace

from nemo_rl.launch import failure as failures
from nemo_rl.launch.bulletin import EXIT_CODE
from nemo_rl.launch.ending import Ending
from nemo_rl.launch.failure import Failure
from nemo_rl.launch.processes import adopt_orphans, end_all

PR_SET_PDEATHSIG = 1
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def stand_guard() -> tuple[int, int] | None:
    """Fork: None in the child, which goes on; in the parent wait for the child's end.

    Returns:
        process id and exit code of the child, 128 + n where signal n ended it.
    """
    adopt_orphans()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        # Without its guard an agent does as on any SIGTERM.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        return None

    # They reach the agent, too: signals for a step go to all its processes.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    while True:
        ended, status = os.waitpid(-1, 0)  # Orphans are waited for, too.
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return pid, code if code >= 0 else 128 - code


def bury(ending: Ending, pid: int, code: int, *, requeue: int) -> int:
    """Tell and tidy up after an agent that ended without a word; return the exit code.

    Args:
        ending: how its node's part ends.
        pid: the agent's process id.
        code: its exit code.
        requeue: exit code of a job that is to go on.
    """
    end_all(0.0)  # First of all: a node without an agent does no good.
    board, node = ending.board, ending.job.node_name
    state = board.node_status(node)["state"]
    if code == 0 or state == "failed" or board.read(EXIT_CODE) is not None:
        return code
    first = failures.read(board.folder)
    failure = Failure(
        node=node, process="agent", message="", pid=pid, exit_code=code, phase=state
    )
    failure = replace(failure, message=failure.summary)
    code = requeue if (first or failure).again else code
    ending.run(code, failure, grace_s=0.0)
    return code
