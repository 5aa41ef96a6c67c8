"""What makes the bundled subject: its people, its texts and its models."""
