"""What is there on coming back: the report page, and the bundle."""
