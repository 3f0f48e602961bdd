"""Memory, traffic and time of a model on a mesh, before any of it exists."""
