"""The two Ray Serve deployments: the ingress, and ImageGenerator, whose replicas hold the bundles."""

import asyncio
import time
from typing import Any, cast

import ray
from pydantic import SecretStr
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError

from morphoray.pipelines.generate import load
from morphoray.pipelines.layout import storage_from
from morphoray.pipelines.serving import INGRESS_CPUS, ServingArgs
from morphoray.pipelines.serving_requests import Catalog, Made, Sampling, ServiceError, Work

RETRY_AFTER_S = 5
FULL = {"status_code": 429, "retry_after_s": RETRY_AFTER_S}


def application(args: ServingArgs, bundles: dict[str, str], token: str | None) -> Any:
    """The bound application; the token travels in a form that no message shows."""
    generator = cast(Any, ImageGenerator).options(
        # twice: one batch at work, and one filling
        max_ongoing_requests=2 * args.max_batch_size,
        max_queued_requests=args.max_queued,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
    )
    secret = None if token is None else SecretStr(token)
    return cast(Any, Ingress).bind(generator.bind(args, bundles), args, bundles, secret)


# One line a request is the ingress's to log.
@serve.deployment(name="ImageGenerator", logging_config={"enable_access_log": False})
class ImageGenerator:
    """Makes images, one a call; calls that come together share a batch, whatever they ask for.

    An image's noise is its own, so whom it shares a batch with changes its pixels by rounding at most.
    """

    def __init__(self, args: ServingArgs, bundles: dict[str, str]) -> None:
        import torch

        context = ray.get_runtime_context()
        torch.set_num_threads(max(1, int(context.get_assigned_resources().get("CPU", 1))))
        use_gpu = bool(context.get_accelerator_ids().get("GPU"))
        storage = storage_from(args.storage)
        self._args = args
        self._bundles = {name: load(storage, uri, use_gpu) for name, uri in bundles.items()}
        self._batched.set_max_batch_size(args.max_batch_size)
        self._batched.set_batch_wait_timeout_s(args.batch_wait_s)

    async def image(self, work: Work) -> Made:
        """The image; raises what its sampler raised."""
        started = time.perf_counter()
        png, batch_size, worked_s, error = await self._batched(work)
        if error is not None:
            raise error
        return Made(png, batch_size, max(0.0, time.perf_counter() - started - worked_s), worked_s)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _batched(self, batch: list[Work]) -> list[tuple[bytes, int, float, Exception | None]]:
        # In a thread, so that the replica answers health checks meanwhile.
        return await asyncio.to_thread(self._make, batch)

    def _make(self, batch: list[Work]) -> list[tuple[bytes, int, float, Exception | None]]:
        groups: dict[Sampling, list[int]] = {}
        for place, work in enumerate(batch):
            groups.setdefault(work.sampling, []).append(place)
        results: dict[int, tuple[bytes, int, float, Exception | None]] = {}
        for sampling, places in groups.items():
            started, error = time.perf_counter(), None
            try:
                images = self._sample(sampling, [batch[place] for place in places])
            except Exception as caught:  # the other groups of the batch are not to fail with this one
                images, error = [b""] * len(places), caught
            seconds = time.perf_counter() - started
            for place, png in zip(places, images, strict=True):
                results[place] = (png, len(places), seconds, error)
        return [results[place] for place in range(len(batch))]

    def _sample(self, sampling: Sampling, group: list[Work]) -> list[bytes]:
        from morphoray.diffusion.generate import SHARED_NOISE, ImageRequest, SamplerSettings, generate
        from morphoray.imaging.png import encode_image, encode_png

        bundle = self._bundles[sampling.bundle]
        settings = SamplerSettings(
            sampler=sampling.sampler,
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            resolution=int(bundle.manifest["resolution"]),
            batch_size=self._args.max_batch_size,
            precision=self._args.precision,
        )
        requests = [
            ImageRequest(
                SHARED_NOISE if item.shared_noise else item.perturbation.perturbation_id,
                item.vector,
                item.index,
                item.seed,
            )
            for item in group
        ]
        mapping, images = bundle.mapping, generate(bundle, requests, settings)
        return [
            encode_image(image, mapping.outputs)
            if item.raw or len(image) == 1
            else encode_png(mapping.render(image))
            for item, image in zip(group, images, strict=True)
        ]


@serve.deployment(
    name="Ingress",
    max_ongoing_requests=256,
    max_queued_requests=256,
    backpressure_config=BackpressureConfig(**FULL),
    ray_actor_options={"num_cpus": INGRESS_CPUS},
)
@serve.ingress()
class Ingress:
    """Checks requests and hands their images out to the replicas, no more at a time than max_queued."""

    def __init__(
        self, generator: Any, args: ServingArgs, bundles: dict[str, str], token: SecretStr | None
    ) -> None:
        self._generator, self._limit, self._token = generator, args.max_queued, token
        self._catalog = Catalog(storage_from(args.storage), bundles)
        self._under_way = 0

    def __serve_build_asgi_app__(self) -> Any:
        """What Serve asks for once this object is made."""
        from morphoray.pipelines.serving_app import make_app

        token = None if self._token is None else self._token.get_secret_value()
        return make_app(self._catalog, self._images, self._ready, token)

    async def _images(self, work: list[Work]) -> list[Made]:
        if self._under_way + len(work) > self._limit:
            raise _full(f"{self._under_way} images are under way, {len(work)} more would be too many")
        self._under_way += len(work)
        answers = [self._generator.image.remote(item) for item in work]
        try:
            return list(await asyncio.gather(*answers))
        except BackPressureError:
            raise _full("all replicas are busy") from None
        finally:
            self._under_way -= len(work)
            for answer in answers:  # those still waiting when another failed or the client left
                answer.cancel()

    async def _ready(self) -> bool:
        status = await asyncio.to_thread(serve.status)
        name = serve.get_replica_context().app_name
        deployments = status.applications[name].deployments
        return bool(deployments["ImageGenerator"].replica_states.get("RUNNING", 0))


def _full(reason: str) -> ServiceError:
    return ServiceError(429, f"{reason}; ask again in {RETRY_AFTER_S} s", {"Retry-After": str(RETRY_AFTER_S)})
