"""Devices and what they hear, published at a user's own MQTT broker, where Home Assistant finds them."""
