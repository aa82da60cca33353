"""A Windows that answers, and remembers what it was asked."""
