"""scvi-tools beside us, where it is installed."""
