"""Audio files on a disk: which files of a folder are recordings, what their containers state, and when they began."""
