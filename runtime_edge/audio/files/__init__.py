"""Audio files as they lie on a disk: which of a folder are meant, what their containers say, and when they began."""
