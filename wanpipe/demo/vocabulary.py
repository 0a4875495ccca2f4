"""The words that the demo models understand.

A caption names a shape, a color and a motion, and may name a background and a speed. The demo
models were trained on captions made from WORDS and ORDERS alone. Uses the standard library only.
"""

import re

# kind of word -> value -> phrases that mean this value
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star", "five-pointed star"),
    },
    "color": {
        "red": ("red", "crimson"),
        "orange": ("orange",),
        "yellow": ("yellow", "golden"),
        "green": ("green",),
        "cyan": ("cyan", "turquoise"),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "pink": ("pink",),
    },
    "background": {
        "white": ("on a white background", "against a white wall", "over white"),
        "black": ("on a black background", "in the dark", "over black"),
        "grey": ("on a grey background", "against a grey wall", "over grey"),
        "blue": ("on a blue background", "against a blue wall", "over blue"),
        "sky": ("in the sky", "under a bright sky", "against a pale sky"),
        "striped": ("on a striped background", "over stripes", "against a striped wall"),
    },
    "motion": {
        "left": ("moves left", "moves to the left", "slides left", "drifts to the left"),
        "right": ("moves right", "moves to the right", "slides right", "drifts to the right"),
        "up": ("moves up", "rises", "climbs upward"),
        "down": ("moves down", "falls", "sinks downward"),
        "still": ("stays still", "does not move", "stands still", "rests"),
        "growing": ("grows", "gets bigger", "expands"),
        "spinning": ("spins", "rotates", "turns around"),
    },
    "speed": {
        "slow": ("slowly", "gently", "at a slow pace"),
        "fast": ("quickly", "fast", "at high speed"),
    },
}
UNNAMED = "shape"  # names no shape: a reference image or a film shows it
REQUIRED = ("shape", "color", "motion")
ORDERS = (
    "a {color} {shape} {motion} {speed} {background}",
    "a {color} {shape} {motion} {background} {speed}",
    "{background}, a {color} {shape} {motion} {speed}",
    "a {shape} that is {color} {motion} {speed} {background}",
    "{speed}, a {color} {shape} {motion} {background}",
    "the {color} {shape} {motion} {background}, {speed}",
    "{background} there is a {color} {shape} that {motion} {speed}",
)
PREFIX = "a video of"


def find_words(text: str) -> dict[str, str]:
    """Return the values that a text names, by kind of word."""
    rest, named = f" {text.lower().rstrip('.').replace(',', ' ')} ", {}
    # backgrounds first: "on a blue background" also contains a color
    for kind in ("background", "speed", "motion", "shape", "color"):
        phrases = [(phrase, value) for value, many in WORDS[kind].items() for phrase in many]
        for phrase, value in sorted(phrases, key=lambda pair: -len(pair[0])):
            if f" {phrase} " in rest and kind not in named:
                named[kind] = value
                rest = rest.replace(f" {phrase} ", "  ", 1)
    return named


def missing(text: str) -> list[str]:
    """List the required kinds of word that a text does not name."""
    named = find_words(text)
    return [kind for kind in REQUIRED if kind not in named]


def unknown_words(text: str) -> list[str]:
    """List the words that occur in no training caption, in their order in the text."""
    phrases = [phrase for values in WORDS.values() for many in values.values() for phrase in many]
    phrases += [re.sub(r"\{\w+\}", "", order) for order in ORDERS]
    phrases += [PREFIX, UNNAMED, "an"]
    known = {word for phrase in phrases for word in re.findall(r"\w+", phrase)}
    return [word for word in dict.fromkeys(re.findall(r"\w+", text.lower())) if word not in known]


def summary() -> str:
    """Describe the vocabulary in one line, with one phrase for each motion and speed."""
    phrased = ("motion", "speed")
    return "; ".join(
        f"{kind}s: "
        + ", ".join(many[0] if kind in phrased else value for value, many in values.items())
        for kind, values in WORDS.items()
    )
