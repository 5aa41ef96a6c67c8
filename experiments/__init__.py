"""Quality over seeds, arms and subjects; not part of the package."""
