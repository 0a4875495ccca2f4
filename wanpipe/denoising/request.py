"""A denoising request: the settings that a user gave, completed with defaults and checked."""

from dataclasses import dataclass
from functools import cached_property

from msgspec import structs

from wanpipe.denoising import loras
from wanpipe.denoising.settings import Params, resolve_settings, schedule_of
from wanpipe.errors import UsageError
from wanpipe.models.geometry import Triple, latent_shape
from wanpipe.pipeline.inputs import Inputs, check_inputs, with_entries_of_run, with_run
from wanpipe.sampling.schedule import Schedule
from wanpipe.store import Entry, Run, Settings, Store
from wanpipe.weights.model import Model


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that the steps of one call depend on.

    `first` is the number of the first step to take. `stop` is the number of the last one plus one.
    `lora_files` has the path of each LoRA by content hash. `memory` is a limit in bytes.
    """

    model: Model
    text: Entry
    image: Entry | None
    video: Entry | None
    step: Entry | None  # the step to continue from
    run: Run | None  # the run that `step` is continued in
    settings: Settings
    lora_files: dict[str, str]
    dtype: str
    first: int
    stop: int
    memory: int | None

    @cached_property
    def schedule(self) -> Schedule:
        """Timesteps and sigmas of all steps."""
        return schedule_of(self.settings)

    @property
    def latent_shape(self) -> Triple:
        """Latent frames, rows and columns (F, H, W). References come before the video's frames."""
        frames, height, width = latent_shape(*self.settings.size, self.model.config.vae.stride)
        return frames + (self.settings.reference_frames or 0), height, width

    @property
    def changes_video(self) -> bool:
        """Whether the run starts from a video with noise, not from noise alone."""
        return self.video is not None and self.video.material.mode == "v2v"

    @property
    def roles(self) -> dict[str, str]:
        """The keys of the text, image and video entries by role."""
        entries = {"text": self.text, "image": self.image, "video": self.video}
        return {role: entry.key for role, entry in entries.items() if entry is not None}


def resolve_request(model: Model, inputs: Inputs, params: Params, store: Store) -> Request:
    """Complete `params` with the settings of the continued run, or with the defaults of the model.

    Raises UsageError for settings that are invalid or do not fit the inputs, and for inputs that do
    not fit the model.
    """
    from wanpipe.backend.device import compute_dtype

    if inputs.step is not None and inputs.run is None:
        inputs = with_run(inputs, store)
    inputs = with_entries_of_run(inputs, store)
    text, step = check_inputs(inputs, model), inputs.step
    chosen, files = loras.choose_loras(model, inputs.run, params, store)
    settings = structs.replace(resolve_settings(model, inputs, params), loras=chosen)
    first = 0 if step is None else step.step + 1
    stop = checked_stop(params.stop_at, first, schedule_of(settings).steps)
    if step is not None:
        check_continued(step, settings)
        if params.seeds or params.noise:
            raise UsageError(
                "a step to continue from has its own noise; leave out --seed and --noise"
            )
    return Request(
        model=model,
        text=text,
        image=inputs.image,
        video=inputs.video,
        step=step,
        run=inputs.run,
        settings=settings,
        lora_files=files,
        dtype=compute_dtype(model.config.dtype),
        first=first,
        stop=stop,
        memory=params.memory,
    )


def checked_stop(stop_at: int | None, first: int, steps: int) -> int:
    """Return --stop-at, by default all steps. Raises UsageError if it is out of range."""
    stop = steps if stop_at is None else stop_at
    if not max(first, 1) <= stop <= steps:
        raise UsageError(
            f"stop-at must be {max(first, 1)} to {steps} here, got {stop}; leave it out to finish"
        )
    return stop


def check_continued(step: Entry, settings: Settings) -> None:
    """Raise UsageError if the step does not end at the sigma where the next one starts."""
    schedule, first = schedule_of(settings), step.step + 1
    if step.material.sigma_next != schedule.sigmas[first]:
        raise UsageError(
            f"step {step.key[:8]} is not step {first} of {schedule.steps} at this shift and "
            "solver; start from noise"
        )
