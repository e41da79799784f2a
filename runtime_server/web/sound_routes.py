"""The sounds behind events, over HTTP: a spectrogram, the audio, and corrections."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runtime_server.web.page_answers import answered, file_answer, json_answer, problem, read_json

_ASK = (
    'send {"number": an event\'s, "label": "what it was"}, or null as the label to take it back; of an event that '
    'is gone {"device", "heard", "since"} as the corrections list them, and null as the label'
)


class SoundSource(Protocol):
    """Requests from the page's event loop. Each raises UsageError and other SscErrors."""

    async def picture(self, number: int) -> bytes:
        """The spectrogram as JSON."""

    async def audio(self, number: int) -> bytes:
        """The audio as WAV."""

    async def correct(self, number: int, label: str | None) -> bytes:
        """Correct a sound; returns as JSON what is kept now."""

    async def forget(self, device: str, heard: str, since: float) -> bytes:
        """Take back a correction whose event may be gone; returns the same."""


def sound_routes(source: SoundSource) -> list[Route]:
    """The routes of one server."""

    async def picture(request: Request) -> Response:
        async def work() -> Response:
            return json_answer(await source.picture(request.path_params["number"]))

        return await answered(work(), 404)

    async def audio(request: Request) -> Response:
        async def work() -> Response:
            return file_answer(request, await source.audio(request.path_params["number"]), "audio/wav")

        return await answered(work(), 404)

    async def correct(request: Request) -> Response:
        said = await read_json(request)
        if isinstance(said, Response):
            return said
        match said:
            case {"number": int(number), "label": (str() | None) as label, **rest} if not rest:

                async def work() -> Response:
                    return json_answer(await source.correct(number, label))

                return await answered(work(), 409)
            case {"device": str(device), "heard": str(heard), "since": int() | float() as since, "label": None, **rest}:
                if rest:
                    return problem(400, _ASK)

                async def forget() -> Response:
                    return json_answer(await source.forget(device, heard, since))

                return await answered(forget(), 409)
        return problem(400, _ASK)

    return [
        Route("/api/v1/events/{number:int}/picture", picture),
        Route("/api/v1/events/{number:int}/audio.wav", audio),
        Route("/api/v1/corrections", correct, methods=["POST"]),
    ]
