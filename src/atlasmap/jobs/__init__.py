"""Living on a cluster: its commands, leaving in time, failures with names, preflight."""
