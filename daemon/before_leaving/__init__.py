"""What is done at home: the demo, the drill, preflight, fetch, the rehearsal."""
