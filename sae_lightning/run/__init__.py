"""Files of a run: its folder, atomic writes, checksums, loggers and checkpoints."""
