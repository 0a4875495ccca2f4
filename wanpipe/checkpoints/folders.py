"""Finds the files of each network in a checkpoint's folder: official, diffusers' or loose files.

Loose files, as ComfyUI's users have them, are told apart by their keys; names only tell two experts
from each other. A VACE module, a file with VACE's tensors alone, is added to the files of its
transformer, in loose files and, where its name says VACE, beside official ones. Reads headers only.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from wanpipe.checkpoints.dimensions import read_json, read_vae
from wanpipe.checkpoints.hub.cache import how_to_complete
from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.state_dict import Kind, recognize
from wanpipe.checkpoints.tensors import list_names, quote_name
from wanpipe.errors import CheckpointError

T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_FILE = "google/umt5-xxl/tokenizer.json"
VAE_FILES = {"2.1": "Wan2.1_VAE.pth", "2.2": "Wan2.2_VAE.pth"}
DIT_STEM = "diffusion_pytorch_model"
EXPERT_FOLDERS = ("low_noise_model", "high_noise_model")

PIPELINE_FILE = "model_index.json"  # of diffusers
DMD_PIPELINE = "WanDMDPipeline"  # FastVideo's own, in the layout of diffusers
PIPELINES = (
    "WanPipeline",
    "WanImageToVideoPipeline",
    "WanVideoToVideoPipeline",
    "WanVACEPipeline",
    DMD_PIPELINE,
)

LOOSE_PATTERNS = ("*", "*/*", "*/*/*")  # of loose files
MAX_LOOSE_FILES = 200  # loose files in a folder; more is no folder of one model
SHARD_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
EXPERT_NAME = re.compile(r"(?<![a-z])(high|low)(?=[_-]?noise|[^a-z]|$)")
LONE_EXPERT_NAME = re.compile(r"(?<![a-z])(high|low)[_-]?noise")
A14B_NAME = re.compile(r"a14b|wan[_.-]?2[_.-]?2(?!.*5b)")

Files = tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """The files of a checkpoint: the transformers', and how to find the others.

    `others` is told whether the VAE is that of Wan2.2 and whether CLIP is needed. `configs` has the
    config.json of each transformer that has one; `pipeline` is diffusers' own settings.
    """

    experts: dict[str, Files]
    configs: dict[str, Path]
    others: Callable[[bool, bool], dict[str, Files]]
    pipeline: Path | None = None

    @property
    def settings(self) -> Files:
        """Every file of settings that is read."""
        whole = (*self.configs.values(), self.pipeline)
        return tuple(dict.fromkeys(path for path in whole if path is not None))


def find_files(directory: Path) -> CheckpointFiles:
    """Find a checkpoint's files. Raises CheckpointError that names what is missing."""
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; give the folder that holds the checkpoint")
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a directory; give the folder of a Wan checkpoint"
        )
    if (directory / PIPELINE_FILE).is_file():
        return find_diffusers(directory)
    whole = any((directory / name).is_dir() for name in EXPERT_FOLDERS)
    if whole or visible(directory.glob(f"{DIT_STEM}*.safetensors*")):
        return find_official(directory)
    return find_loose(directory) or find_official(directory)


def visible(paths: Iterable[Path]) -> Files:
    """Return the files among paths in order, without hidden ones, such as ._* of macOS."""
    return tuple(sorted(path for path in paths if path.name[0] != "." and path.is_file()))


def required_file(directory: Path, name: str) -> Path:
    """Give the path of a file that must be there."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(f"{directory} lacks {name}; {how_to_complete(directory)}")
    return path


def find_official(directory: Path) -> CheckpointFiles:
    """Find the files as the official repositories have them."""
    parts = transformers(directory)
    experts = {name: shards(part) for name, part in parts.items()}
    used = {path for files in experts.values() for path in files}
    # other files beside an official transformer are not opened, whatever they are
    named = [
        path
        for path in files_below(directory, "*.safetensors")
        if "vace" in path.name.lower() and path not in used
    ]
    modules = sort_networks(named).get("VACE module", [])

    def others(has_vae22: bool, clip: bool) -> dict[str, Files]:
        names = {
            "t5_encoder": T5_FILE,
            "tokenizer": TOKENIZER_FILE,
            "vae": VAE_FILES["2.2" if has_vae22 else "2.1"],
        }
        names |= {"clip": CLIP_FILE} if clip else {}
        return {component: (required_file(directory, name),) for component, name in names.items()}

    return CheckpointFiles(
        experts=with_modules(directory, experts, modules),
        configs={name: part / "config.json" for name, part in parts.items()},
        others=others,
    )


def with_modules(
    directory: Path, experts: dict[str, Files], modules: list[Files]
) -> dict[str, Files]:
    """Add to the files of each transformer those of its VACE module, if there are modules."""
    if not modules:
        return experts
    labels = list_names([files[0].relative_to(directory).as_posix() for files in modules])
    found = by_noise(directory, modules) if len(modules) == 2 else {"model": modules[0]}
    if found.keys() != experts.keys() or len(modules) != len(experts):
        count = "two transformers, which need a module" if len(experts) == 2 else "one transformer"
        raise CheckpointError(
            f"{directory} holds VACE modules ({labels}) for {count}"
            f"{' each, one called high_noise, one low_noise' if len(experts) == 2 else ''}; give a "
            "folder with the files of one model"
        )
    return {name: (*files, *found[name]) for name, files in experts.items()}


def transformers(directory: Path) -> dict[str, Path]:
    """Map the component name of each transformer to its folder: one at the top, or two experts."""
    folders = {name: directory / name for name in EXPERT_FOLDERS if (directory / name).is_dir()}
    if len(folders) == 1:
        absent = next(name for name in EXPERT_FOLDERS if name not in folders)
        raise CheckpointError(f"{directory} lacks {absent}/; {how_to_complete(directory)}")
    return folders or {"model": directory}


def shards(directory: Path, stem: str = DIT_STEM) -> Files:
    """List the files of one network: those of its index, or else all shards that are there."""
    index = directory / f"{stem}.safetensors.index.json"
    single = f"{stem}.safetensors"
    if not index.is_file():
        found = visible(directory.glob(f"{stem}-*.safetensors"))
        alone = not found or (directory / single).is_file()
        return (required_file(directory, single),) if alone else found
    table = read_json(index).get("weight_map")
    names = sorted(set(map(str, table.values()))) if isinstance(table, dict) else []
    if not names or not all(name.isprintable() and name == Path(name).name != "" for name in names):
        raise CheckpointError(f"{index} must map tensors to files beside it; download it again")
    return tuple(required_file(directory, name) for name in names)


def find_diffusers(directory: Path) -> CheckpointFiles:
    """Find the files as diffusers saves a pipeline; `transformer` has the high noise of two."""
    path = directory / PIPELINE_FILE
    settings = read_json(path)
    kind = settings.get("_class_name")
    if kind not in PIPELINES:
        raise CheckpointError(
            f"{path}: _class_name must be one of {', '.join(PIPELINES)}, got "
            f"{quote_name(str(kind))}"
        )
    second = settings.get("transformer_2")
    two = isinstance(second, list) and any(second)
    if not two and ((directory / "transformer_2").is_dir() or settings.get("boundary_ratio")):
        raise CheckpointError(
            f"{path} names no transformer_2, but the pipeline has two; download it again"
        )
    names = {"model": "transformer"}
    if two:
        names = {"low_noise_model": "transformer_2", "high_noise_model": "transformer"}

    def others(has_vae22: bool, clip: bool) -> dict[str, Files]:
        found = {
            "t5_encoder": shards(directory / "text_encoder", "model"),
            "tokenizer": (required_file(directory / "tokenizer", "tokenizer.json"),),
            "vae": shards(directory / "vae"),
        }
        return found | ({"clip": shards(directory / "image_encoder", "model")} if clip else {})

    return CheckpointFiles(
        experts={name: shards(directory / part) for name, part in names.items()},
        configs={name: directory / part / "config.json" for name, part in names.items()},
        others=others,
        pipeline=path,
    )


def find_loose(directory: Path) -> CheckpointFiles | None:
    """Find single files by their keys; None where none is a network of Wan."""
    if (directory / "config.json").is_file() and "components" in read_json(
        directory / "config.json"
    ):
        raise CheckpointError(
            f"{directory} is a model that wanpipe converted already; give it to --model"
        )
    networks = sort_networks(loose_files(directory))
    if not networks:
        return None
    experts = name_experts(directory, networks.get("transformer", []))
    experts = with_modules(directory, experts, networks.get("VACE module", []))

    def others(has_vae22: bool, clip: bool) -> dict[str, Files]:
        version = "2.2" if has_vae22 else "2.1"
        vaes = [files for files in networks.get("VAE", []) if read_vae(files).version == version]
        found = {
            "t5_encoder": only_one(
                directory, "text encoder (umT5-XXL)", networks.get("text encoder")
            ),
            "tokenizer": only_one(
                directory,
                f"tokenizer.json (that of umT5, {TOKENIZER_FILE} of an official checkpoint)",
                [(path,) for path in files_below(directory, "tokenizer.json")],
            ),
            "vae": only_one(directory, f"VAE of Wan{version}", vaes),
        }
        if clip:
            what = "image encoder (CLIP ViT-H)"
            found["clip"] = only_one(directory, what, networks.get("image encoder"))
        return found

    beside = {name: files[0].parent / "config.json" for name, files in experts.items()}
    top = directory / "config.json"
    found = {name: path if path.is_file() else top for name, path in beside.items()}
    configs = {name: path for name, path in found.items() if path.is_file()}
    return CheckpointFiles(experts=experts, configs=configs, others=others)


def loose_files(directory: Path) -> Files:
    """List the tensor files below a folder; none where no safetensors or GGUF file is among
    them.
    """
    found = (*files_below(directory, "*.safetensors"), *files_below(directory, "*.gguf"))
    return (*found, *files_below(directory, "*.pth")) if found else ()


def sort_networks(paths: Iterable[Path]) -> dict[Kind, list[Files]]:
    """Sort tensor files by the kind of network that their keys tell."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        part = SHARD_NAME.fullmatch(path.name)
        groups.setdefault((path.parent, part[1] if part else path.name), []).append(path)
    networks: dict[Kind, list[Files]] = {}
    for files in groups.values():
        with open_tensors(files) as file:
            found = recognize(file.tensors)
        if found is not None:
            networks.setdefault(found[0].kind, []).append(tuple(files))
    return networks


def files_below(directory: Path, pattern: str) -> Files:
    """List the files with this name at most two folders down, in order."""
    found = visible(
        path
        for folders in LOOSE_PATTERNS
        for path in directory.glob(folders.removesuffix("*") + pattern)
        if not any(part[0] == "." for part in path.relative_to(directory).parts)
    )
    if len(found) > MAX_LOOSE_FILES:
        raise CheckpointError(
            f"{directory} holds {len(found)} {pattern} files; give a folder with those of one model"
        )
    return found


def name_experts(directory: Path, found: list[Files]) -> dict[str, Files]:
    """Name the transformers: one, or two that say which noise they are for."""
    labels = [files[0].relative_to(directory).as_posix() for files in found]
    if len(found) == 2:
        experts = by_noise(directory, found)
        if len(experts) == 2:
            return experts
        raise CheckpointError(
            f"{directory} holds two transformers, {list_names(labels)}; let the one be called "
            "high_noise and the other low_noise, or give a folder with one"
        )
    if len(found) != 1:
        what = f"{len(found)} transformers: {list_names(labels)}" if found else "no transformer"
        raise CheckpointError(
            f"{directory} holds {what}; give a folder with the files of one model"
        )
    name = labels[0].lower()
    if LONE_EXPERT_NAME.search(name) or (EXPERT_NAME.search(name) and A14B_NAME.search(name)):
        raise CheckpointError(
            f"{directory} holds one expert of two, {quote_name(labels[0])}; put the other beside it"
        )
    return {"model": found[0]}


def by_noise(directory: Path, found: Iterable[Files]) -> dict[str, Files]:
    """Map the experts to the files whose names say which noise they are for."""
    experts: dict[str, Files] = {}
    for kind in ("low", "high"):
        for files in found:
            label = files[0].relative_to(directory).as_posix().lower()
            if set(EXPERT_NAME.findall(label)) == {kind}:
                experts[f"{kind}_noise_model"] = files
    return experts


def expert_label(path: str) -> str:
    """Return "high" or "low" where the name of a file inside a checkpoint says which expert it is
    for, as for loose files, or by the folders of diffusers; "" elsewhere.
    """
    if path.startswith(("transformer/", "transformer_2/")):
        return path.partition("/")[0]
    said = set(EXPERT_NAME.findall(path.lower()))
    return said.pop() if len(said) == 1 else ""


def only_one(directory: Path, what: str, found: Iterable[Files] | None) -> Files:
    """Give the files of the one network of a kind."""
    each = list(found or ())
    if not each:
        raise CheckpointError(f"{directory} holds no {what}; put it there")
    if len(each) > 1:
        labels = [files[0].relative_to(directory).as_posix() for files in each]
        raise CheckpointError(
            f"{directory} holds more than one {what}: {list_names(labels)}; give a folder with the "
            "files of one model"
        )
    return each[0]
