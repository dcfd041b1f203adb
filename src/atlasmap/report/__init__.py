"""Pages and tables for people: the report, pages of audits and certificates, the summary."""
