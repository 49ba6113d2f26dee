"""python alone.py FILE COMMAND...: run a command while no other one that names this file does.

The command inherits the lock, so it ends with the command and all that it started, however they
end. For any Python 3 on Linux and macOS, without a package.
"""

import fcntl
import os
import sys

path, *command = sys.argv[1:]
file = open(path, "r+")  # for writing, as an exclusive lock on NFS needs it
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another make that is setting up", file=sys.stderr, flush=True)
    fcntl.flock(file, fcntl.LOCK_EX)
except OSError as error:  # a file system without this kind of lock
    print(f"no lock ({error.strerror}): make sure that no other make is setting up",
          file=sys.stderr, flush=True)
os.set_inheritable(file.fileno(), True)
os.execvp(command[0], command)
