"""Checks of machines before a job trains on them, of a recipe before it queues."""
