"""The explorer: an atlas as one self-contained HTML page, to colour, search and select cells."""
