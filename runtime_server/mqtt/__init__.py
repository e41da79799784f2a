"""Devices and what they hear at a user's own MQTT broker, as Home Assistant finds them."""
