"""What makes a run whole: its folder and files, checksums, loggers and checkpoints."""
