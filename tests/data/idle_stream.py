"""When a server has done all that it was sent."""

from nats.js.errors import NotFoundError
from waiting import eventually

from runtime_edge.formats import subjects


async def settled(hub):
    """Until no frame waits to be delivered or acknowledged."""

    async def none_waits():
        try:
            infos = [await hub.stream.consumer_info(subjects.STREAM, f"server-{p}") for p in range(subjects.PARTITIONS)]
        except NotFoundError:  # a server that starts has not made them yet
            return False
        return not sum(info.num_pending + info.num_ack_pending for info in infos)

    await eventually(none_waits, "every frame of the stream has been acknowledged")
