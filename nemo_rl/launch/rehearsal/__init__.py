"""A recipe played through on this machine, with a shrunken random model."""
