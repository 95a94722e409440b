"""The hand-written loop as one would write it if no event were ever asked about: in bulk, without a task for each."""

import uvloop

from scripts.bench.peers import plain, work

BULK = 500


async def run() -> None:
    """Work until killed."""
    client = await plain.opened()
    while True:
        entries = await plain.read(client, BULK)
        await plain.write(client, [(entry, work.known(data)) for entry, data in entries])


if __name__ == "__main__":
    uvloop.run(run())
