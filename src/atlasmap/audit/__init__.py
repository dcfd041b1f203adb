"""Audits: common questions about a mapping, answered on the user's own data."""
