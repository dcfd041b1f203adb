"""The command line: one function a command; parse, one call, write."""
