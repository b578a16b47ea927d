"""How trained weights reach an engine that holds a copy, and how the copy is checked."""
