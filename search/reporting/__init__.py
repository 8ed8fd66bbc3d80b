"""What people read: the report, its figures, the terminal's summary."""
