"""Values of a run and the files that hold them.

Imports only the standard library, msgspec and transitions, so that the daemon, the stages and any script can use it.
"""
