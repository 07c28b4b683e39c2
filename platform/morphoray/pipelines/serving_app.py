"""The HTTP interface: FastAPI routes, bearer token, and errors as {"error": message}."""

import asyncio
import base64
import hmac
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from morphoray import __version__
from morphoray.pipelines.serving_requests import (
    Catalog,
    ImageOut,
    ImagesRequest,
    ImagesResponse,
    Made,
    ServiceError,
    Work,
)

PAGE = Path(__file__).with_name("serving.html")
# The page is self-contained: nothing may come from, or go to, another host.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

MakeImages = Callable[[list[Work]], Awaitable[list[Made]]]
Ready = Callable[[], Awaitable[bool]]


def make_app(catalog: Catalog, make_images: MakeImages, ready: Ready, token: str | None) -> FastAPI:
    """The application. `token`: what `Authorization: Bearer` must carry for /v1; None: nothing."""
    app = FastAPI(title="morphoray", version=__version__)
    _add_error_handlers(app)
    authorised = _authoriser(token)
    _add_information(app, catalog, ready, authorised)
    _add_images(app, catalog, make_images, authorised)
    return app


def _authoriser(token: str | None) -> Any:
    """A dependency that lets pass who has the token."""
    bearer = HTTPBearer(auto_error=False)

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        credentials = given.credentials if given else ""
        if token is not None and not hmac.compare_digest(credentials.encode(), token.encode()):
            message = "expected the service's token as Authorization: Bearer TOKEN"
            raise ServiceError(401, message, {"WWW-Authenticate": "Bearer"})

    return Depends(authorised)


def _add_information(app: FastAPI, catalog: Catalog, ready: Ready, authorised: Any) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        """200 when images can be made, 503 while the bundles are loading."""
        if not await ready():
            raise ServiceError(503, "no replica has loaded the bundles yet; ask again")
        return {"status": "ok", "bundles": list(catalog.manifests)}

    @app.get("/v1/bundles", dependencies=[authorised])
    async def bundles() -> list[dict[str, Any]]:
        """The bundles: channels, sampling defaults, perturbations and levels of context that they know."""
        keys = ("fingerprint", "resolution", "control", "sampling", "perturbations")
        return [
            {"name": name, "encoder": manifest["condition"]["encoder"]}
            | {"channels": catalog.mappings[name].outputs, "shown": catalog.mappings[name].legend}
            | {"context": manifest["condition"].get("context", {})}
            | {"takes_smiles": catalog.takes_smiles(name)}
            | {key: manifest.get(key) for key in keys}
            for name, manifest in catalog.manifests.items()
        ]


def _add_images(app: FastAPI, catalog: Catalog, make_images: MakeImages, authorised: Any) -> None:
    @app.post(
        "/v1/images",
        response_model=ImagesResponse,
        dependencies=[authorised],
        responses={200: {"content": {"image/png": {}}}},
    )
    async def images(request: ImagesRequest, accept: Annotated[str, Header()] = "*/*") -> Response:
        """Images as a function of bundle, perturbation, seed, index and sampler settings.

        JSON with base64 PNG; with `Accept: image/png` and n = 1 the PNG itself.
        """
        started = time.perf_counter()
        as_png = "image/png" in accept and "application/json" not in accept
        if as_png and request.n != 1:
            raise ServiceError(406, f"Accept: image/png takes n = 1, found {request.n}; accept JSON instead")
        work = await asyncio.to_thread(catalog.work, request)
        encoded_s = time.perf_counter() - started
        made = await make_images(work)
        headers = _headers(catalog, work[0], made, encoded_s, time.perf_counter() - started)
        if as_png:
            return Response(made[0].png, media_type="image/png", headers=headers)
        return JSONResponse(_body(catalog, work, made).model_dump(exclude_none=True), headers=headers)


def _headers(
    catalog: Catalog, work: Work, made: list[Made], encoded_s: float, total_s: float
) -> dict[str, str]:
    timings = {
        "encode": encoded_s,
        "wait": max(item.waited_s for item in made),
        "generate": max(item.worked_s for item in made),
        "total": total_s,
    }
    return {
        "X-Morphoray-Bundle": str(catalog.manifests[work.sampling.bundle]["fingerprint"]),
        "X-Morphoray-Perturbation": quote(work.perturbation.perturbation_id),
        "X-Morphoray-Seed": str(work.seed),
        "X-Morphoray-Batch": str(max(item.batch_size for item in made)),
        "Server-Timing": ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in timings.items()),
    }


def _body(catalog: Catalog, work: list[Work], made: list[Made]) -> ImagesResponse:
    first = work[0]
    manifest = catalog.manifests[first.sampling.bundle]
    return ImagesResponse(
        bundle=first.sampling.bundle,
        bundle_fingerprint=str(manifest["fingerprint"]),
        perturbation_id=first.perturbation.perturbation_id,
        cell_type=first.perturbation.cell_type,
        experiment=first.perturbation.experiment,
        seed=first.seed,
        shared_noise=first.shared_noise,
        sampler=first.sampling.sampler,
        steps=first.sampling.steps,
        guidance_scale=first.sampling.guidance_scale,
        resolution=int(manifest["resolution"]),
        channels=list(catalog.mappings[first.sampling.bundle].outputs),
        images=[
            ImageOut(index=item.index, png=base64.b64encode(image.png).decode())
            for item, image in zip(work, made, strict=True)
        ],
    )


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    async def service(request: Request, error: ServiceError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "; ".join(map(_explain, error.errors()))}, 422)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the images could not be made; the service's log says why"}, 500)


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"] if part != "body")
    message = str(item["msg"]).removeprefix("Value error, ")
    value = item.get("input")
    found = f", found {str(value)[:80]!r}" if where and not isinstance(value, dict | list) else ""
    return f"{where or 'body'}: {message}{found}"
