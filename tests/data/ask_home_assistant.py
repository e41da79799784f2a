"""Run by a Python that has Home Assistant: refuses descriptions of devices that its own schemas refuse.

Standard input has a JSON list of descriptions, as they are published. Nothing of this project is imported here.
"""

import asyncio
import json
import sys
import tempfile

from homeassistant.components.mqtt import binary_sensor, sensor
from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA, SHARED_OPTIONS
from homeassistant.const import __version__
from homeassistant.core import HomeAssistant

PLATFORMS = {"binary_sensor": binary_sensor, "sensor": sensor}


async def ask(payloads):
    """Its schemas want to be asked on its own event loop, with templates that it can compile."""
    HomeAssistant(tempfile.mkdtemp())
    for payload in payloads:
        DEVICE_DISCOVERY_SCHEMA(payload)
        shared = {name: payload[name] for name in (*SHARED_OPTIONS, "device", "origin") if name in payload}
        for component in payload["components"].values():
            own = {name: value for name, value in component.items() if name != "platform"}
            module = PLATFORMS[component["platform"]]
            module.DISCOVERY_SCHEMA(shared | own)
            module.PLATFORM_SCHEMA_MODERN(own)  # which takes no key that it does not know


asyncio.run(ask(json.load(sys.stdin)))
print(__version__)
