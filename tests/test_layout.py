"""
The rooms of the house, read from the source alone: sizes, circles, the direction of imports, and what belongs where.

Imports are read with `ast`, at module level and inside functions alike, so nothing is imported here.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 600
# A module may import from its own level and from those below it.
LEVELS = {"hub floor": 0, "data": 1, "training": 2, "evaluation": 2, "conversion": 2, "baselines": 2, "commands": 3}
EXAMPLES = "examples"
# Only the judge of drawings knows this encoder, whose training set is described in emoji.
JUDGE = {"seed/evaluation/efficientnet_lite.py", "seed/evaluation/judge.py"}
ONLY_SEED_TINY = ("emoji", "efficientnet-lite0", "efficientnet_lite0")


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` with the name None; `level` is the number of leading dots."""

    module: str
    name: str | None
    level: int
    line: int


def python_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts]


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path = ROOT) -> list[Import]:
    """Every import of a file, at any depth; relative ones with the module that they mean, spelled out."""
    found = []
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, 0, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [Import(module, alias.name, node.level, node.lineno) for alias in node.names]
    return found


def edges(folder: Path, root: Path = ROOT) -> dict[str, set[str]]:
    """For every module below `folder`, the modules below it that it imports."""
    paths = {module_name(path, root): path for path in python_files(folder)}
    graph = {}
    for module, path in paths.items():
        targets = set()
        for one in imports_of(path, root):
            submodule = f"{one.module}.{one.name}"
            targets.add(submodule if submodule in paths else one.module)
        graph[module] = targets & paths.keys()
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return one circle as the modules along it, the first repeated at the end; nothing if there is none."""
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if circle := walk(target, [*trail, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := walk(module, []))), [])


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == EXAMPLES:
        return EXAMPLES
    if module == "seed.__main__":
        return "commands"
    return parts[1] if len(parts) > 1 and (ROOT / "seed" / parts[1]).is_dir() else "hub floor"


def is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.startswith("__")


def private_imports(folder: Path, root: Path = ROOT, room=room_of) -> list[str]:
    """Where a module imports a private name, or a private module, of another room of seed."""
    found = []
    for path in python_files(folder):
        for one in imports_of(path, root):
            names = [*one.module.split("."), one.name]
            foreign = names[0] == "seed" and room(one.module) != room(module_name(path, root))
            if foreign and any(is_private(name) for name in names):
                found.append(f"{path.relative_to(root)}:{one.line} imports {one.module}.{one.name}")
    return found


def hub_modules() -> list[Path]:
    return sorted((ROOT / "seed").glob("*_seed*.py"))


# The house -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["seed", EXAMPLES])
def test_no_file_is_too_long(folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".md", ".yaml")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 20
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_modules_import_each_other_in_a_circle():
    graph = edges(ROOT / "seed")
    assert len(graph) > 50 and "seed.modeling_seed" in graph["seed.processing_seed"]
    assert find_circle(graph) == []


def test_no_rooms_import_each_other_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for module, targets in edges(ROOT / "seed").items():
        rooms.setdefault(room_of(module), set()).update(room_of(target) for target in targets)
    assert find_circle({room: targets - {room} for room, targets in rooms.items()}) == []


def test_arrows_go_down_only():
    graph = edges(ROOT / "seed")
    assert {room_of(module) for module in graph} <= LEVELS.keys()
    upwards = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if LEVELS[room_of(target)] > LEVELS[room_of(module)]
    ]
    assert upwards == []


def test_the_library_does_not_import_its_examples():
    folders = (ROOT / EXAMPLES, ROOT / EXAMPLES / "seed_tiny")
    of_examples = {EXAMPLES} | {path.stem for folder in folders for path in folder.iterdir()} - {"README"}
    assert {"arguments", "makers"} <= of_examples
    imported = {
        one.module.partition(".")[0]: path
        for path in python_files(ROOT / "seed")
        for one in imports_of(path)
        if not one.level
    }
    assert imported.keys() & of_examples == set()


@pytest.mark.parametrize("folder", ["seed", EXAMPLES])
def test_no_room_imports_private_names_of_another(folder):
    assert private_imports(ROOT / folder) == []


def test_hub_modules_import_each_other_as_one_flat_folder():
    """A checkpoint with code travels as a folder of these files, in which only `from .name import ...` works."""
    assert len(hub_modules()) > 15
    wrong = []
    for path in hub_modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                own = any(alias.name.partition(".")[0] == "seed" for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                own = node.module.partition(".")[0] == "seed"
            elif isinstance(node, ast.ImportFrom):
                own = node.level > 1 or not node.module or not (ROOT / "seed" / f"{node.module}.py").is_file()
            else:
                continue
            if own:
                wrong.append(f"{path.name}:{node.lineno}")
    assert wrong == []


def test_only_the_commands_know_argparse():
    rooms = {
        room_of(module_name(path))
        for path in python_files(ROOT / "seed")
        for one in imports_of(path)
        if one.module == "argparse"
    }
    assert rooms == {"commands"}


def test_the_library_does_not_know_what_seed_tiny_is_made_of():
    named = []
    for path in sorted((ROOT / "seed").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in (".py", ".md", ".txt", ".json", ".yaml") or name in JUDGE:
            continue
        if name.startswith(("seed/assets/", "seed/hub_configs/")):
            continue
        text = path.read_text(encoding="utf-8").lower()
        named += [f"{name}: {word}" for word in ONLY_SEED_TINY if word in text or word in name.lower()]
    assert named == []


# The check itself ----------------------------------------------------------------------------------------------------


def test_the_check_finds_circles_and_private_names(tmp_path):
    """Else the tests above could not fail."""
    for room in ("training", "data"):
        (tmp_path / "seed" / room).mkdir(parents=True)
    (tmp_path / "seed" / "data" / "codes.py").write_text("def read():\n    from ..training import loop\n")
    (tmp_path / "seed" / "training" / "loop.py").write_text("from ..data.codes import _rows, read\n")
    graph = edges(tmp_path / "seed", tmp_path)
    assert graph == {"seed.data.codes": {"seed.training.loop"}, "seed.training.loop": {"seed.data.codes"}}
    assert find_circle(graph) == ["seed.data.codes", "seed.training.loop", "seed.data.codes"]
    found = private_imports(tmp_path / "seed", tmp_path)
    assert found == ["seed/training/loop.py:1 imports seed.data.codes._rows"]
