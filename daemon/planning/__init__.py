"""When it will be over: estimates, the forecast, the deadline."""
