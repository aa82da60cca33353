"""The stages: one runnable module per kind of work. Imports state and bible_data, never daemon, never another stage."""
