"""What an event is and what becomes of it."""

__version__ = "0.1.0"
