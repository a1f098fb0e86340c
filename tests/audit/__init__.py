"""Tests of what an audit says once everything is read."""
