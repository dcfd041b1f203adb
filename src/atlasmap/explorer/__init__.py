"""The atlas as one page that opens from disk: a map to colour, search, lasso and read."""
