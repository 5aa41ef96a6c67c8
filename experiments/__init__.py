"""Quality over seeds, ranks, retrained models and subjects; not part of the package."""
