"""Engines that sample responses on a rank."""
