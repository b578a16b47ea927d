"""The command line ``nemo-rl convert``: one module a group of commands."""
