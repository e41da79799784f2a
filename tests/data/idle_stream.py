"""When a server has done all that it was sent."""

from waiting import eventually

from runtime_edge.formats import subjects


async def settled(hub):
    """Until no frame waits to be delivered or acknowledged."""

    async def none_waits():
        infos = [await hub.stream.consumer_info(subjects.STREAM, f"server-{p}") for p in range(subjects.PARTITIONS)]
        return not sum(info.num_pending + info.num_ack_pending for info in infos)

    await eventually(none_waits, "every frame of the stream has been acknowledged")
