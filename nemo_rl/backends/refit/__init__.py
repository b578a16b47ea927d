"""Weights on their way from training processes to generating ones; knows no engine."""
