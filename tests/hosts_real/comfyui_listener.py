"""Runs inside a real ComfyUI's Python, by comfyui_server.py: PORT CLIENT FOLDER.

Keeps in FOLDER what the server tells a client until one run has ended: the images as files, and
`told.jsonl` with a line for each message; an image's is {"type": "preview", "file": ...}.
"""

import asyncio
import json
import sys
from pathlib import Path

import aiohttp

PORT, CLIENT, FOLDER = sys.argv[1:]
ENDS = "execution_success", "execution_error", "execution_interrupted"
IMAGE, HEADER = 1, 8  # the kind of a binary message, and the bytes before its image


async def listen():
    address = f"ws://127.0.0.1:{PORT}/ws?clientId={CLIENT}"
    folder = Path(FOLDER)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        with (folder / "told.jsonl").open("w") as told:
            async for number, message in numbered(socket):
                if message.type == aiohttp.WSMsgType.BINARY:
                    assert int.from_bytes(message.data[:4]) == IMAGE
                    file = folder / f"{number:04d}.jpg"
                    file.write_bytes(message.data[HEADER:])
                    event = {"type": "preview", "file": file.name}
                else:
                    event = json.loads(message.data)
                told.write(json.dumps(event) + "\n")
                if event["type"] in ENDS:
                    return


async def numbered(socket):
    number = 0
    async for message in socket:
        number += 1
        yield number, message


asyncio.run(listen())
