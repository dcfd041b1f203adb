"""The command line. Each command is one function: read its input, call the package, write the
result."""
