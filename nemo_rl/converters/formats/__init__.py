"""Kinds of folders on disk, read and written tensor by tensor; no model is known."""
