"""A run on disk: its folder, checkpoints, settings, manifest and card."""
