"""Writes the command that makes a run again, or finishes it, ready to be pasted into a shell."""

import shlex
from collections.abc import Iterator

from msgspec import UNSET

from wanpipe.store import Run, Settings, Store
from wanpipe.store.runs import Lora

ALL = "lora"  # the option for a LoRA of every expert
EXPERTS = {"high_noise_model": "lora-high", "low_noise_model": "lora-low"}


def remake_command(run: Run, store: Store) -> str | None:
    """Return a command for a POSIX shell, or None if the cache does not know what is needed.

    A run that starts from a text alone is one `wanpipe run`. Others name their entries, and need
    these in the cache.
    """
    from_noise = not isinstance(run.start, str)
    if from_noise and run.seed is None:
        return None  # the noise was a file
    if any(lora.hash not in run.loras for lora in run.settings.loras):
        return None  # its file is not known
    cache = ["--cache", str(store.root.absolute())]
    model = ["--model", run.model.directory] if run.model.directory else []
    output = ["--output", f"run-{run.key[:8]}.mp4"]
    rates = [video.fps for video in run.videos[-1:] if video.fps != run.fps]
    rate = [word for fps in rates for word in ("--fps", number(fps))]
    changing = [*changing_options(run.settings), *lora_options(run)]
    if from_noise and run.inputs.keys() == {"text"} and run.prompt and model:
        words = ["run", *cache, *model, "--prompt", run.prompt, *negative_options(run)]
        words += [*noise_options(run), *changing, *output, *rate]
        return f"wanpipe {join(words)}"
    sources = [*run.inputs.values()] if from_noise else [str(run.start), *run.inputs.values()]
    words = ["denoise", *cache, *model]
    words += [word for source in sources for word in ("--from", source)]
    words += noise_options(run) if from_noise else []
    decoding = ["decode", *cache, *model, *output, *rate]
    denoising = join([*words, *changing])
    return f'step=$(wanpipe {denoising}) &&\n  wanpipe {join(decoding)} --from "$step"'


def negative_options(run: Run) -> list[str]:
    """Return the options of the negative prompt; none if it is not known."""
    if run.negative_prompt is None:
        return []
    if not run.negative_prompt:
        return ["--no-negative-prompt"]
    return ["--negative-prompt", run.negative_prompt]


def noise_options(run: Run) -> list[str]:
    """Return the options that cannot change within a run."""
    settings = run.settings
    words = ["--seed", str(run.seed)]
    for name in ("width", "height", "num_frames", "steps"):
        words += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    words += ["--shift", number(settings.shift), "--scheduler", settings.scheduler]
    if settings.timesteps:
        words += ["--timesteps", ",".join(map(number, settings.timesteps))]
    if settings.trim_first_frames:
        words += ["--trim-first-frames", str(settings.trim_first_frames)]
    if settings.strength is not UNSET:
        words += ["--strength", number(settings.strength)]
    return words


def changing_options(settings: Settings) -> Iterator[str]:
    """Yield the options that a branch may change."""
    low, high = settings.guide_scale
    yield from ("--guide-scale", number(low) if low == high else f"{number(low)},{number(high)}")
    if settings.step_cache is not None:
        yield from ("--step-cache", number(settings.step_cache))
    if settings.context_scale is not UNSET:
        yield from ("--context-scale", number(settings.context_scale))


def lora_options(run: Run) -> Iterator[str]:
    """Yield the options of each LoRA file, in order."""
    given: set[tuple[str, str]] = set()
    for lora in run.settings.loras:
        name, path = option_of(lora), run.loras[lora.hash]
        if lora.half is True and (name, path) in given:
            continue  # the other half of a file that one option gave
        given.add((name, path))
        yield from (f"--{name}", path, number(lora.strength))


def option_of(lora: Lora) -> str:
    """Return the option that gave a LoRA."""
    if lora.half is True or lora.expert is None:
        return ALL
    return EXPERTS.get(lora.expert, ALL)


def number(value: float) -> str:
    """Write a number so that it is read back exactly; 5.0 becomes 5."""
    return str(int(value)) if value == int(value) else repr(value)


def join(words: list[str]) -> str:
    """Join words for a shell."""
    return " ".join(map(quote, words))


def quote(word: str) -> str:
    """Quote a word for a shell.

    A pasted control character could act on the terminal before the shell sees it, so a word with
    one is written with escapes, which bash, zsh, ksh and POSIX.1-2024 shells read.
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter == "\n":
        return "\\n"
    if letter.isprintable():
        return letter
    # octal: \\x may take more digits than two
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))
