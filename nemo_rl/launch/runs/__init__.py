"""Runs after their submission: status, logs, attach, cancel, report."""
