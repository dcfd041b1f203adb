"""What people read: pages for the report."""
