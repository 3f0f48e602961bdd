"""Jigsaw parallelism: mesh, layouts, collectives and the sharded products; knows no weather."""
