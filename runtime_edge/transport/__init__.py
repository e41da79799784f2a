"""Frames to the broker and answers back: connection, spool, delivery, bandwidth."""
