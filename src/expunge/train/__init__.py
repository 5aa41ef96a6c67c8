"""The method: set-up, loop, step, validation, early stopping, and what is done with a finished adapter."""
