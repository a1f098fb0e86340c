"""Slot policies, foresight, and what they bring."""
