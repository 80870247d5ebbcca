"""READ: run file -> arrays -> answers. Needs no torch."""
