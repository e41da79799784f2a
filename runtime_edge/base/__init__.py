"""Small tools that know nothing of audio: files, memory, waiting, logs."""
