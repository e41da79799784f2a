"""Small tools that know nothing about audio: files, memory, waiting, logs."""
