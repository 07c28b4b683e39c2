"""One run is one frozen, typed, complete configuration, read from a YAML file."""

from collections.abc import Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from morphoray.errors import ConfigError, StorageError
from morphoray.sections import Section, build, read_values
from morphoray.seeds import fingerprint
from morphoray.storage import Storage


class StorageConfig(Section):
    """How s3:// URIs are reached; credentials come from the environment, as the AWS tools take them."""

    endpoint_url: str | None = None
    anonymous: bool = False
    region: str | None = None
    retries: int = Field(8, ge=0)
    timeout_s: float = Field(60, gt=0)


class DatasetConfig(BaseModel):
    """Which importer reads which source; every further key is an option of that importer."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    source: str | None = None  # simulated: made under the run when absent
    storage: StorageConfig | None = None  # None: the run's own

    @property
    def options(self) -> dict[str, Any]:
        """The importer's own keys, not validated yet."""
        return dict(self.model_extra or {})


class ImageConfig(Section):
    """From raw pixels to the model's image: K x resolution x resolution, uint8."""

    # A name, `identity`, channels in the order wanted, or a mapping written out; None: the dataset's own.
    mapping: str | tuple[str, ...] | dict[str, Any] | None = None
    resolution: int = Field(512, ge=8, multiple_of=8)
    fit: Literal["resize", "crop"] = "resize"  # the largest centred square, resized; or cut out at scale
    scale_to: int | None = Field(None, ge=8)  # with crop: side the square is resized to before cutting
    um_per_pixel: float | None = Field(None, gt=0)  # with crop: resample every site to it before cutting
    crops: int = Field(1, ge=1)  # with crop: how many a site; 1 is the centre
    illumination: Literal["raw", "stretched", "off"] = (
        "raw"  # divide raw pixels, or after a min-max to 8 bits
    )
    min_maximum: int | None = Field(None, ge=1, le=255)  # quarantine a site whose brightest pixel is below

    @model_validator(mode="after")
    def _crop_options(self) -> "ImageConfig":
        scaled = self.scale_to is not None or self.um_per_pixel is not None
        if self.fit == "resize" and (self.crops > 1 or scaled):
            raise ValueError("crops, scale_to and um_per_pixel belong to fit: crop, found fit: resize")
        if self.scale_to is not None and self.um_per_pixel is not None:
            raise ValueError("scale_to and um_per_pixel are two scales, expected one of them")
        return self


ContextColumn = Literal["cell_type", "experiment"]


class PerturbationsConfig(BaseModel):
    """Which encoder turns a perturbation into a vector; further keys are that encoder's options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    encoder: str = "constant"
    projection: Literal["pad", "mlp"] = "pad"
    tokens: int = Field(1, ge=1)  # of the learned projection; identical padded tokens need one only
    hidden: int = Field(256, ge=1)  # width of the learned projection's hidden layer
    dropout: float = Field(0.0, ge=0, le=1)  # share of conditions replaced by the null token in training
    max_bad_fraction: float = Field(0.1, ge=0, le=1)  # of the perturbations, without a vector
    context: tuple[ContextColumn, ...] = ()  # further conditions
    context_dropout: float = Field(0.1, ge=0, le=1)  # share of samples whose context training hides

    @property
    def options(self) -> dict[str, Any]:
        """The encoder's own keys, not validated yet."""
        return dict(self.model_extra or {})

    def settings(self) -> dict[str, Any]:
        """What a model depends on, as JSON values; runs without context keep what they stored before it."""
        unused = set() if self.context else {"context", "context_dropout"}
        return self.model_dump(mode="json", exclude=unused)

    @model_validator(mode="after")
    def _distinct_columns(self) -> "PerturbationsConfig":
        if len(set(self.context)) != len(self.context):
            raise ValueError(f"context must be distinct columns, found {list(self.context)}")
        return self


SHIPPED = "shipped"  # as bundle.source: the denoiser that comes with the package


class BundleConfig(Section):
    """The model to start from."""

    preset: Literal["tiny", "small", "sd"] = "tiny"
    source: str | None = None  # a diffusers-format folder; shipped: the package's (tiny); None: fresh weights
    vae: str | None = None  # a folder with an AutoencoderKL instead of the preset's
    unet: Literal["unet", "unet_ema"] = "unet_ema"  # which of the source's two weights
    prediction_type: Literal["epsilon", "v_prediction"] | None = None  # None: the preset's


class EncodeConfig(Section):
    """From SITES to LATENTS."""

    batch_size: int = Field(32, ge=1)  # images a VAE call
    views: tuple[str, ...] = ("identity", "hflip")
    splits: tuple[str, ...] | None = None  # encode only these, for one [train]; None: every site
    sites_per_part: int = Field(64, ge=1)  # the unit of work and of resume
    num_actors: int = Field(1, ge=1)
    gpus_per_actor: float = Field(0, ge=0)
    cpus_per_actor: float = Field(1, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    read_threads: int = Field(8, ge=1)
    max_bad_fraction: float = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _identity_first(self) -> "EncodeConfig":
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"views must be distinct and at least one, found {list(self.views)}")
        return self


class TrainingConfig(Section):
    """The optimisation; batch_size is global, whatever the number of workers, and need not divide by it."""

    mode: Literal["latents", "stream"] = "latents"  # stream: encode while training, and keep no latents
    max_steps: int = Field(1000, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)  # micro-batches a step, cut out of batch_size
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = Field(1.0, gt=0)
    min_snr_gamma: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpoint_every: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1)
    sample_every: int | None = Field(None, ge=1)  # steps between sample grids; None: none
    shuffle_window: int | None = Field(None, ge=1)  # latents; a worker holds two windows. None: all of them
    num_workers: int | tuple[int, int] = 1  # [least, most]: as many as the cluster has room for, elastically
    resize_every_s: float = Field(60, gt=0)  # how often an elastic run looks for room for another number
    use_gpu: bool = False
    cpus_per_worker: float = Field(1, gt=0)
    max_failures: int = Field(0, ge=-1)  # restarts from the newest checkpoint; preemptions do not count

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run starts with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the run uses."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _enough_for_every_worker(self) -> "TrainingConfig":
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(f"num_workers must be N or [least, most] of 1 or more, found {self.num_workers}")
        pieces = self.max_workers * self.gradient_accumulation
        if self.batch_size < pieces:
            raise ValueError(
                f"batch_size {self.batch_size} is global and must be at least "
                f"num_workers x gradient_accumulation = {pieces}"
            )
        return self

    @model_validator(mode="after")
    def _what_a_stream_can(self) -> "TrainingConfig":
        if self.mode == "latents":
            return self
        if self.min_workers != self.max_workers:
            raise ValueError(
                f"num_workers must be one number with mode: stream, found {self.num_workers}: an elastic "
                "number would take the CPUs that encoding needs"
            )
        if self.batch_size % self.max_workers:
            raise ValueError(
                f"batch_size {self.batch_size} must divide by num_workers {self.num_workers} with mode: "
                "stream, where every worker gets as many samples"
            )
        if self.shuffle_window is not None:
            raise ValueError("shuffle_window belongs to mode: latents, found mode: stream")
        return self


class GenerationConfig(Section):
    """How images are sampled."""

    sampler: Literal["ddpm", "ddim", "dpmsolver++"] = "ddpm"
    steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(1.0, ge=0)
    n: int = Field(500, ge=1)  # images a perturbation
    batch_size: int = Field(16, ge=1)
    images_per_part: int = Field(256, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    format: Literal["parquet", "png"] = "parquet"
    num_actors: int = Field(1, ge=1)
    gpus_per_actor: float = Field(0, ge=0)
    cpus_per_actor: float = Field(1, gt=0)
    seed: int | None = None  # None: the run's
    shared_noise: bool = False  # the same noise for every perturbation: image i shows the same cells in all


class MethodConfig(Section):
    """Where a method's images come from: exactly one of the three."""

    run: str | None = None  # a run's config.yaml: its bundle generates, as its own generation section says
    bundle: str | None = None  # a bundle that generates, as this run's generation section says
    images: str | None = None  # made already: what `generate` wrote, or a folder of images by perturbation

    @model_validator(mode="before")
    @classmethod
    def _says_where(cls, values: Any) -> Any:
        if isinstance(values, dict | MethodConfig):
            return values
        raise ValueError("expected {images: FOLDER}, {run: CONFIG} or {bundle: FOLDER}")

    @model_validator(mode="after")
    def _one_source(self) -> "MethodConfig":
        given = [name for name, value in self.model_dump().items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of run, bundle and images, found {given or 'none'}")
        return self


class ProfilesConfig(Section):
    """Cells measured as CellProfiler does, and what follows from their profiles."""

    n: int = Field(50, ge=2)  # most images a perturbation, of real ones and of every method's
    controls: int = Field(16, ge=2)  # real control images of each group, beside those among the n
    normalise_by: Literal["plate", "experiment"] | None = "plate"  # group of real images; None: one group
    families: tuple[str, ...] | None = None  # of measurements; None: measurements.DEFAULT_FAMILIES
    umap: bool = True  # its map beside the principal components; importing it takes some ten seconds
    images_per_part: int = Field(16, ge=1)


class CellsConfig(Section):
    """Crops of single cells, which are compared instead of whole images."""

    size: int = Field(ge=8)  # side in pixels of the image
    images: int = Field(100, ge=1)  # most images a perturbation that cells are cut from; twice of real ones


class EvaluationConfig(Section):
    """How generated images are compared with real ones."""

    extractor: str = "inception"  # downloads its weights; efficientnet_lite0 comes with morphoray[eval]
    n: int = Field(500, ge=2)  # most images a set; every distance uses the same N on both sides
    experiments: tuple[str, ...] | None = None  # the real images'; None: all, seen and held-out ones apart
    own_model: bool = True  # this run's, `conditional`, comes first; false: methods alone, nothing is trained
    methods: dict[str, MethodConfig] = Field({})  # compared with this run's own model, or the first of them
    repeats: int = Field(10, ge=1)  # random draws that a Fréchet distance is the mean of
    kid_subset_size: int = Field(100, ge=2)  # images a side of a kernel distance's subset, at most N − 1
    kid_subsets: int = Field(100, ge=1)  # random subsets that a kernel distance is the mean of
    protocol: Literal["honest", "paper"] = "honest"  # paper: its distances to padded real images beside ours
    segmentation: dict[str, Any] | None = None  # segmentation.SegmentationOptions; for profiles and cells
    profiles: ProfilesConfig | None = None
    cells: CellsConfig | None = None
    features_per_part: int = Field(256, ge=1)
    num_actors: int = Field(1, ge=1)
    gpus_per_actor: float = Field(0, ge=0)
    cpus_per_actor: float = Field(1, gt=0)
    out: str | None = None  # None: <run_dir>/evaluation

    @field_validator("methods")
    @classmethod
    def _names_of_folders(cls, methods: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        for name in methods:
            if not name.isprintable() or not name.strip() or any(part in name for part in ("/", "\\", "..")):
                raise ValueError(
                    f"found the name {name!r}, expected one without /, \\, .. and control characters: a "
                    "folder is called by it. Rename the method"
                )
        return methods

    @model_validator(mode="after")
    def _cells_are_found(self) -> "EvaluationConfig":
        if (self.profiles or self.cells) and self.segmentation is None:
            raise ValueError("profiles and cells need segmentation: which channels, and a nucleus's diameter")
        return self

    @model_validator(mode="after")
    def _something_is_measured(self) -> "EvaluationConfig":
        if not self.own_model and not self.methods:
            raise ValueError("without own_model expected methods, such as {impa: {images: FOLDER}}")
        return self


class ScreenConfig(Section):
    """Which library is screened, and how a molecule is scored."""

    library: str | None = None  # .smi, .csv with a smiles column, or Parquet
    n: int = Field(8, ge=1)  # images a molecule
    molecules_per_part: int = Field(32, ge=1)
    control: str | None = None  # perturbation_id of the control; None: the bundle's control
    out: str | None = None  # None: <run_dir>/screen
    extractor: str = "efficientnet_lite0"
    concentration_um: float | None = None
    cell_type: str | None = None  # context of every image, the control's too; None: the mixture of all
    experiment: str | None = None


class RunConfig(Section):
    """A run: everything it makes lies under `run_dir`."""

    run_dir: str
    data_dir: str | None = None  # where sites/ and latents/ lie, to share them between runs; None: run_dir
    seed: int = 0
    storage: StorageConfig = StorageConfig()
    dataset: DatasetConfig = DatasetConfig(name="simulated")
    image: ImageConfig = ImageConfig()
    perturbations: PerturbationsConfig = PerturbationsConfig()
    bundle: BundleConfig = BundleConfig()
    encode: EncodeConfig = EncodeConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    screen: ScreenConfig = ScreenConfig()

    def fingerprint(self, *sections: str) -> str:
        """16 hexadecimal digits that name the given sections' values and the seed."""
        dump = self.model_dump(mode="json")
        return fingerprint({"seed": self.seed, **{name: dump[name] for name in sections}})

    def to_yaml(self) -> str:
        """The complete configuration, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse(text: str, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run described by YAML `text`, with overrides `a.b=c` applied; `where` names it in errors."""
    return build(RunConfig, read_values(text, where, overrides), "")


def load(uri: str, storage: Storage, overrides: Sequence[str] = ()) -> RunConfig:
    """The run of the YAML file at `uri`. Raises ConfigError for a folder or what `parse` refuses."""
    try:
        text = storage.read_text(uri)
    except StorageError as error:
        inside = storage.list_files(uri)
        if not inside and not isinstance(error.__cause__, IsADirectoryError):
            raise
        named = next((file for file in inside if file.endswith((".yaml", ".yml"))), None)
        raise ConfigError(
            f"{uri}: it is a folder, expected a run's YAML file{f', such as {named}' if named else ''}."
        ) from None
    return parse(text, uri, overrides)
