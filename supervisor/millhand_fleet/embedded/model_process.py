"""The embedded model as a child process: Ollama's API over llama.cpp."""

import asyncio
import os
import socket
from pathlib import Path

from millhand.config import Config
from millhand.log import logger
from millhand.process import run_child
from millhand.pulse import Birth, Pulse
from millhand.stop import Stop
from millhand_fleet.serving import serve


def run_model(config: Config, model_path: Path, slots: int, listener: socket.socket, birth: Birth) -> None:
    """Be the model server until told to stop."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when llama.cpp is loaded: else its threads spin
    from millhand_fleet.embedded.engine import Engine  # noqa: PLC0415 - loads llama.cpp, which only this process needs
    from millhand_fleet.embedded.ollama_api import build_app  # noqa: PLC0415 - the same

    async def life(stop: Stop, pulse: Pulse) -> None:
        ctx_tokens = config.model.num_ctx
        engine = await asyncio.to_thread(
            Engine, model_path=model_path, slots=slots, ctx_tokens=ctx_tokens, threads=slots
        )
        pulse.send({"ready": True})
        logger().info("model.loaded", file=model_path.name, slots=slots, ctx_tokens=ctx_tokens)
        try:
            await serve(build_app(engine), [listener], stop)
        finally:
            engine.close()

    run_child(birth, config, life)
