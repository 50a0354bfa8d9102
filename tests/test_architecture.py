"""The rules of imports: downwards only, no circles, private torch by name, no backend in the core."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lowbit
import networkx as nx
import pytest

ROOT = Path(lowbit.__file__).parent

# Who may import whom: a module imports from its own floor or from a lower one.
FLOORS = {
    "lowbit.errors": 0,
    "lowbit.ir": 1,
    "lowbit.matchers": 2,
    "lowbit.passes": 3,
    "lowbit.backends": 4,
    "lowbit.aot_package": 5,
    "lowbit.calibration": 5,
    "lowbit.calibration_faults": 5,
    "lowbit.cpp_wrapper": 5,
    "lowbit.export_utils": 5,
    "lowbit.quantize_fx": 5,
    "lowbit.quantize_pt2e": 5,
    "lowbit.verb_checks": 5,
    "lowbit.verb_results": 5,
    "lowbit.tools": 6,
    "lowbit": 7,
}

# Private by name, but types and helpers that torch's own documentation of FX and export works with.
PUBLIC_IN_PRACTICE = ("torch._ops", "torch._subclasses.fake_tensor", "torch.utils._pytree")

# Other private interfaces may move with any release, so each is behind one module, named here with why it is
# needed at all. A test beside that module says what breaks when it moves.
PRIVATE_TORCH = {
    ("lowbit.aot_package", "torch._inductor.aoti_compile_and_package"): (
        "compiles ahead of time; documented by torch, and nowhere else"
    ),
    ("lowbit.ir.quantized_decomposed", "torch.ao.quantization.fx._decomposed"): (
        "registers the quantized_decomposed operators; Inductor imports it too"
    ),
    (
        "lowbit.ir.observers.distributed",
        "torch.nn.parallel.DistributedDataParallel._get_active_ddp_module",
    ): "tells the processes whose statistics must agree; no public function does",
    ("lowbit.ir.text.exported", "torch.export._unlift"): (
        "the input checks that torch.export puts on a module, to write them down and to put them back"
    ),
    ("lowbit.ir.text.exported", "torch.fx.graph._PyTreeCodeGen"): "lets a graph take structures apart",
    ("lowbit.ir.text.exported", "torch.fx.graph._PyTreeInfo"): "lets a graph take structures apart",
    ("lowbit.ir.text.symbols", "torch.utils._sympy"): "symbolic sizes are sympy expressions of its functions",
    ("lowbit.passes.instruments.trace_changes", "torch._logging"): "writes torch's structured trace",
    ("lowbit.ir.schema", "torch._C._dispatch_has_kernel_for_dispatch_key"): (
        "tells operators that are made of others in every dispatch; no public function does"
    ),
    (
        "lowbit.matchers.inductor",
        "torch._inductor.pattern_matcher",
    ): "the matcher that lowering is written in",
    ("lowbit.backends.x86_inductor.inductor_lowerings", "torch._inductor"): (
        "changes lowerings in Inductor's table, which has some for frozen weights only, and for no bodies"
    ),
}

# The folders of backends; BackendConfig is no backend, but another way of describing one.
BACKENDS = sorted(
    folder.name
    for folder in (ROOT / "backends").iterdir()
    if (folder / "__init__.py").exists() and folder.name != "backend_config"
)
# Every folder of a backend, its quantizer, and the hardware and programs that backends are about.
BACKEND_NAMES = re.compile(
    "|".join(
        [
            *(re.escape(name).replace("_", "_?") for name in BACKENDS if name != "embedding"),
            r"embedding_?(quantizer|backend)|embedding_?quantization",
            r"x86|xnnpack|xpu|arm_?inductor|aarch64|amd64|(?<![a-z])arm(?![a-z])|onednn|vnni|avx|fbgemm|qnnpack",
            r"executorch|coreml|tensorrt|npu(?![a-z])|inductor_?quantizer",
        ]
    ),
    re.IGNORECASE,
)
# What speaks of backends to people, and so may name one in an example; it may depend on none.
VERBS = (
    "lowbit.aot_package",
    "lowbit.calibration",
    "lowbit.calibration_faults",
    "lowbit.cpp_wrapper",
    "lowbit.export_utils",
    "lowbit.quantize_pt2e",
    "lowbit.verb_checks",
    "lowbit.verb_results",
)


def package_files() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.py")),
        *(
            path
            for folder in sorted(ROOT.iterdir())
            if (folder / "__init__.py").exists()
            for path in sorted(folder.rglob("*.py"))
        ),
    ]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(["lowbit", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {module_name(path): path for path in package_files()}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The absolute names that module ``name`` imports, with lines; ``from a import b`` is ``a.b``."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)


def attribute_chains(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted expressions such as ``torch._ops.OpOverload``, with their lines."""
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name):
            yield ".".join([inner.id, *reversed(parts)]), inner.lineno


def defining_module(imported: str) -> str | None:
    """The lowbit module an imported name is read from; None for other packages."""
    while imported:
        if imported in MODULES:
            return imported
        imported = imported.rpartition(".")[0]
    return None


def floor(module: str) -> int:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS[module]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def is_part_of(used: str, path: str) -> bool:
    """Whether ``used`` is ``path``, lies in it, or is a step on the way to it (``torch._ops`` in a chain)."""
    return within(used, path) or within(path, used)


def is_private_torch(name: str) -> bool:
    first, *rest = name.split(".")
    return first == "torch" and (rest[:1] == ["ao"] or any(re.match(r"_[a-zA-Z]", part) for part in rest))


def private_torch_uses(name: str) -> set[tuple[str, int]]:
    uses = [*imports(name, TREES[name]), *attribute_chains(TREES[name])]
    return {
        (used, line)
        for used, line in uses
        if is_private_torch(used) and not any(is_part_of(used, name) for name in PUBLIC_IN_PRACTICE)
    }


def assert_none(violations: Iterator[tuple[str, int, str]]) -> None:
    """Fail with one line a violation, in the form that editors jump to."""
    report = [f"{MODULES[name].relative_to(ROOT)}:{line}: {what}" for name, line, what in sorted(violations)]
    assert not report, "\n".join(["", *report])


def test_relative_imports_are_resolved() -> None:
    specs = dict(imports("lowbit.ir.specs", TREES["lowbit.ir.specs"]))
    assert "lowbit.errors.SpecError" in specs
    assert defining_module("lowbit.errors.SpecError") == "lowbit.errors"
    assert floor("lowbit.ir.specs") == FLOORS["lowbit.ir"] > floor("lowbit.errors")


def test_imports_run_downwards() -> None:
    upwards = (
        (name, line, f"imports {used} from a higher floor")
        for name, tree in TREES.items()
        for used, line in imports(name, tree)
        if (target := defining_module(used)) is not None and floor(target) > floor(name)
    )
    assert_none(upwards)


def test_imports_inside_the_package_are_relative() -> None:
    absolute = (
        (name, node.lineno, "imports lowbit by its absolute name")
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and node.level == 0 and within(node.module or "", "lowbit"))
        or (isinstance(node, ast.Import) and any(within(alias.name, "lowbit") for alias in node.names))
    )
    assert_none(absolute)


def test_no_circular_imports() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, tree in TREES.items():
        graph.add_edges_from(
            (name, target)
            for used, _line in imports(name, tree)
            if (target := defining_module(used)) is not None
        )
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles
    assert not list(nx.selfloop_edges(graph))


def test_torchao_is_not_used() -> None:
    uses = (
        (name, line, f"imports {used}")
        for name, tree in TREES.items()
        for used, line in imports(name, tree)
        if within(used, "torchao")
    )
    assert_none(uses)


def test_private_torch_is_behind_named_modules() -> None:
    strays = (
        (name, line, f"uses {used}, which is not in PRIVATE_TORCH")
        for name in MODULES
        for used, line in private_torch_uses(name)
        if not any(module == name and is_part_of(used, door) for module, door in PRIVATE_TORCH)
    )
    assert_none(strays)


def test_every_listed_private_interface_is_used() -> None:
    unused = [
        (module, door)
        for module, door in PRIVATE_TORCH
        if module not in MODULES or not any(within(used, door) for used, _line in private_torch_uses(module))
    ]
    assert not unused, "remove them from PRIVATE_TORCH"


def test_the_core_names_no_backend() -> None:
    core = [name for name in MODULES if floor(name) < FLOORS["lowbit.backends"] and floor(name)]
    # What all backends share, and what is made for any of them, is core too; a registry reads names.
    shared = [name for name, path in MODULES.items() if path.parent == ROOT / "backends"]
    kits = [name for name in MODULES if within(name, "lowbit.tools.conformance")]
    assert len(core) > 50
    assert "lowbit.backends.annotation" in shared
    assert kits
    named = (
        (name, 1, f"knows a backend: {word.group()}")
        for name in (*core, *shared, *kits)
        if name not in SHARED_BY_SOME
        for word in BACKEND_NAMES.finditer(name + ast.unparse(without_texts(TREES[name])))
    )
    assert_none(named)


# For several backends, not for all: what they have in common.
SHARED_BY_SOME = ("lowbit.backends.signed_kernel", "lowbit.backends.inductor_quantizer")


def test_what_is_for_some_backends_is_used_by_them_only() -> None:
    strangers = (
        (name, line, f"imports {used}")
        for name, tree in TREES.items()
        for used, line in imports(name, tree)
        if any(within(used, some) for some in SHARED_BY_SOME)
        and not any(within(name, f"lowbit.backends.{backend}") for backend in BACKENDS)
    )
    assert_none(strangers)


def test_the_core_and_the_verbs_import_no_backend() -> None:
    """By whatever name: a backend's folder is imported by backends and by who says which there are."""
    folders = [f"lowbit.backends.{name}" for name in BACKENDS]
    lower = [name for name in MODULES if floor(name) < FLOORS["lowbit.backends"]]
    shared = [name for name, path in MODULES.items() if path.parent == ROOT / "backends"]
    known = (
        (name, line, f"imports {used}")
        for name in (*lower, *shared, *VERBS)
        if name not in SHARED_BY_SOME
        for used, line in imports(name, TREES[name])
        if any(within(used, folder) for folder in folders)
    )
    assert_none(known)


@pytest.mark.parametrize(
    "planted",
    [
        "if backend.name == 'x86_inductor': pass",
        "from ..backends.arm_inductor import ARM_INDUCTOR",
        "is_arm = machine == 'aarch64'",
        "x = EmbeddingQuantizer()",
        "y = torch.ops.onednn.qlinear_pointwise",
        "z = {'xpu': 1}",
        "def lower_for_xnnpack(): pass",
    ],
)
def test_a_name_that_is_planted_is_found(planted: str) -> None:
    assert BACKEND_NAMES.search(ast.unparse(without_texts(ast.parse(planted))))


@pytest.mark.parametrize("harmless", ["warm = farm", "F.embedding(x)", "'embedding_bag'", "charm(x)"])
def test_what_only_looks_like_a_name_is_not(harmless: str) -> None:
    assert not BACKEND_NAMES.search(harmless)


def without_texts(tree: ast.Module) -> ast.Module:
    """A copy of ``tree`` without docstrings and hints, which may give a backend as an example."""
    copy = ast.parse(ast.unparse(tree))
    for node in ast.walk(copy):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
        elif isinstance(node, ast.keyword) and node.arg == "hint":
            node.value = ast.Constant("")
    return copy
