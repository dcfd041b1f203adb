"""Models of scvi-tools, in and out: nothing in somebody's file is ever run."""
