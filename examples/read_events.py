"""Read what devices hear, as they hear it: labels that go on and off, and results with a label.

python examples/read_events.py nats://127.0.0.1:4222 [how many]

If the server admits only known devices, add a reader (`ssc server device add NAME --reader`) and put its name and
password into the address: nats://phone:PASSWORD@gateway:4222.
"""

import asyncio
import json
import sys

import nats


async def read(broker: str, most: int) -> None:
    """Print events until there were so many."""
    connection = await nats.connect(broker)
    events = await connection.subscribe("evt.>")
    print("listening", flush=True)
    for _ in range(most):
        event = json.loads((await events.next_msg(timeout=None)).data)
        print(event["device"], event["event"], event.get("label") or event.get("detected"), flush=True)
    await connection.close()


asyncio.run(read(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 1_000_000))
