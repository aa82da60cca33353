"""The daemon and the command line: decides, saves, acts. Imports state, never stages, never torch."""
