"""What reaches the owner's phone, and what comes back: Telegram, the mirror, the heartbeat."""
