"""Writes the command that makes a run again, or finishes it, ready to be pasted into a shell."""

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from wanpipe.store import Run, Settings, Store, runs
from wanpipe.store.runs import Lora

Option = tuple[str, ...]  # a name with its values

# options that a branch may change, besides those of LoRAs
CHANGING = {*runs.CHANGING, *runs.NAG_OPTIONS.values()} - {"loras"}
ALL = "--lora"  # the option for a LoRA of every expert
EXPERTS = {"high_noise_model": "--lora-high", "low_noise_model": "--lora-low"}


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
    common: list[Option] = [("--cache", str(store.root.absolute()))]
    common += [("--model", run.model.directory)] if run.model.directory else []
    output: list[Option] = [("--output", f"run-{run.key[:8]}.mp4")]
    output += [("--fps", number(one.fps)) for one in run.videos[-1:] if one.fps != run.fps]
    fixed = [*noise_options(run)] if from_noise else []
    changing = [*changing_options(run.settings), *lora_options(run)]
    if from_noise and run.inputs.keys() == {"text"} and run.prompt and run.model.directory:
        text = [("--prompt", run.prompt), *negative_options(run)]
        return join("run", [*common, *text, *fixed, *changing, *output])
    sources = [*([] if from_noise else [str(run.start)]), *run.inputs.values()]
    denoising = join("denoise", [*common, *(("--from", one) for one in sources), *fixed, *changing])
    decoding = join("decode", [*common, *output])
    return f'step=$({denoising}) &&\n{decoding} --from "$step"'


def negative_options(run: Run) -> list[Option]:
    """Return the option of the negative prompt; none if it is not known."""
    if run.negative_prompt is None:
        return []
    if not run.negative_prompt:
        return [("--no-negative-prompt",)]
    return [("--negative-prompt", run.negative_prompt)]


def noise_options(run: Run) -> Iterator[Option]:
    """Yield the options that cannot change within a run."""
    yield "--seed", str(run.seed)
    for name, value in run.settings.options().items():
        if name not in CHANGING and (name, value) != ("trim_first_frames", 0):
            yield option(name, value)


def changing_options(settings: Settings) -> Iterator[Option]:
    """Yield the options that a branch may change."""
    for name, value in settings.options().items():
        if name in CHANGING:
            yield option(name, value)


def option(name: str, value: Any) -> Option:
    """Return a setting as an option."""
    words = value if isinstance(value, list | tuple) else [value]
    text = ",".join(word if isinstance(word, str) else number(word) for word in words)
    return f"--{name.replace('_', '-')}", text


def lora_options(run: Run) -> Iterator[Option]:
    """Yield the option of each LoRA file, in order."""
    given: set[tuple[str, str]] = set()
    for lora in run.settings.loras:
        name, path = option_of(lora), run.loras[lora.hash]
        if lora.half is True and (name, path) in given:
            continue  # the other half of a file that one option gave
        given.add((name, path))
        yield name, path, number(lora.strength)


def option_of(lora: Lora) -> str:
    """Return the option that gave a LoRA."""
    if lora.half is True or lora.expert is None:
        return ALL
    return EXPERTS.get(lora.expert, ALL)


def number(value: float) -> str:
    """Write a number so that it is read back exactly; 5.0 becomes 5."""
    return str(int(value)) if value == int(value) else repr(value)


def join(command: str, options: Iterable[Option]) -> str:
    """Write a command of wanpipe for a shell, each option on a line of its own."""
    lines = [" ".join([name, *map(quote, values)]) for name, *values in options]
    return " \\\n  ".join([f"wanpipe {command}", *lines])


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
