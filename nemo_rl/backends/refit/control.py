"""ControlStore and Connection: how the processes of a transfer find and watch another.

The driver holds a small key-value store (torch's TCPStore) that every participant
connects to. Nothing large passes through it: who has come, whose turn it is, which
bucket is there, and why somebody gave up. A process that waits polls it, so that the
first failure ends every wait within a second, with the reason.
"""
