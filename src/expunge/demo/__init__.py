"""The bundled subject: a small model that has memorised made-up people, and the demo that makes it forget some."""
