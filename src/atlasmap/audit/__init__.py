"""Questions that users ask of every mapping, answered on their own data."""
