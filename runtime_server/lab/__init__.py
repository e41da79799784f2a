"""Devices and a server on networks that are made on this machine, and what is measured there (`ssc bench`)."""
