"""The exact versions Vigil runs on, and what installs them: on the standard library alone, as nothing else is there yet."""
