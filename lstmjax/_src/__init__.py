"""Internal: what is imported from here may change at any time."""
