"""Keeping many workers alive, and minding what they leave behind."""
