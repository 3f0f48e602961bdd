"""What runs in the child process of a fetch: HTTP, ECMWF open data and earthkit-data.

Kept light, since a child is started for each fetch; knows nothing of fields, grids or readers.
"""
