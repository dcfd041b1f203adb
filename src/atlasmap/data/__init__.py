"""Data: the sheet, readers, the counts contract, genes, the registry."""
