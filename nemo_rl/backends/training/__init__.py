"""Engines that hold and update weights on a rank."""
