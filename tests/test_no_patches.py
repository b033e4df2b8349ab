"""Nobody changes another object's methods, class or module: who wants to know subscribes to events.

A collaborator that a test wants to be another is handed in, or a subclass overrides it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("wanspec_kernels", "drafter", "bench", "tests")

# What is not ours may be patched at the boundary: an environment that fails is made so.
OURS = ("wanspec_kernels", "drafter", "bench", "tests")

# By file, with the reason. No other file may patch, and these may nothing else.
ALLOWED = {
    # Buffers that kernels write to are poisoned and guarded; torch's operators stand between.
    "tests/attention/conftest.py": {"launch._allocate"},
    "tests/model/test_graphs.py": {"launch._allocate"},
    "tests/verify/conftest.py": {"operators._allocate"},
    "tests/verify/test_block.py": {
        "wanspec_kernels.verify.operators._allocate",
        # A bug is planted, and a test has to see it; or coins that are keyed otherwise.
        "block_reference.*",
        "noise.uniform",
    },
    "tests/verify/test_verify_api.py": {"operators._allocate"},
    "tests/verify/test_traversal.py": {"traversal_reference.*", "noise.uniform"},
    # Coins at the ends of their range, and launches of sizes that no shape at hand asks for.
    "tests/verify/test_rejection.py": {"noise.uniform"},
    "tests/test_noise.py": {"noise.words"},
    "tests/verify/test_paths.py": {"launches.choose_shape"},
    # The same target with and without what is being tested, which it has no option for.
    "tests/model/test_merged.py": {"model.merge_projections", "parent.k_proj.forward"},
    # What is another library's, but has the name of something of ours.
    "tests/test_text_stream.py": {"tokenizer.decoder"},
    "tests/tiny_models.py": {"tokenizer.decoder"},
    "wanspec_kernels/engine/model/compiled.py": {"layer.forward"},
    "tests/wire/keys/test_allow_list.py": {"wanspec_kernels.wire.keys.files.load_certificate"},
}


class Classes(ast.NodeVisitor):
    """Names of our methods, and of what our objects say that others may set."""

    def __init__(self) -> None:
        self.methods: set[str] = set()
        self.fields: set[str] = set()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for each in node.body:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                self.methods.add(each.name)
            elif isinstance(each, ast.AnnAssign):
                self.fields.add(ast.unparse(each.target))
        for each in ast.walk(node):
            for target in targets_of(each):
                if ast.unparse(target.value) == "self":
                    self.fields.add(target.attr)
        self.generic_visit(node)


def targets_of(node: ast.AST) -> Iterator[ast.Attribute]:
    """The attributes that a statement assigns to."""
    match node:
        case ast.Assign(targets=targets):
            found = targets
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            found = [target]
        case ast.Delete(targets=targets):
            found = targets
        case _:
            return
    for each in found:
        elements = each.elts if isinstance(each, ast.Tuple | ast.List) else [each]
        yield from (element for element in elements if isinstance(element, ast.Attribute))


def imports_of(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(a.asname or a.name.partition(".")[0]): a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    return found


def is_ours(name: str, imports: dict[str, str]) -> bool:
    """A module or class of the project; a name that was not imported is taken for one of ours."""
    head = name.partition(".")[0]
    return imports.get(head, head if head in OURS else "tests").partition(".")[0] in OURS


def patches_in(source: str, ours: Classes) -> Iterator[str]:
    """What a file patches, as it writes it."""
    tree = ast.parse(source)
    imports = imports_of(tree)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    here = Classes()
    here.visit(tree)
    fields = ours.fields | here.fields
    for node in ast.walk(tree):
        for target in targets_of(node):
            owner, name = ast.unparse(target.value), target.attr
            head = owner.partition(".")[0]
            if owner in ("self", "cls"):
                continue
            is_method = name in ours.methods and name not in fields
            is_module = head in imports and head == owner and is_ours(owner, imports)
            is_hidden = name.startswith("_") and name in ours.methods | ours.fields
            is_class = name == "__class__" or owner in own
            called = isinstance(target.value, ast.Call) and owner.startswith("type(")
            if is_method or is_module or is_hidden or is_class or called:
                yield f"{owner}.{name}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            yield from patched_by(node, imports)


def patched_by(call: ast.Call, imports: dict[str, str]) -> Iterator[str]:
    """`monkeypatch.setattr` and its like, and `setattr`, of what is ours."""
    first, *rest = call.args
    if isinstance(call.func, ast.Name):
        if ast.unparse(first) in imports and is_ours(ast.unparse(first), imports):
            yield ast.unparse(call)
    elif isinstance(first, ast.Constant):
        where, _, name = str(first.value).rpartition(".")
        if is_ours(where, {where.partition(".")[0]: where}):
            yield f"{where}.{name}"
    elif is_ours(ast.unparse(first), imports):
        constant = rest[0].value if isinstance(rest[0], ast.Constant) else "*"
        yield f"{ast.unparse(first)}.{constant}"


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def classes_of(found: dict[str, str]) -> Classes:
    ours = Classes()
    for path, source in found.items():
        if not path.startswith("tests/"):
            ours.visit(ast.parse(source))
    return ours


def test_nobody_patches_what_is_ours() -> None:
    found = sources()
    ours = classes_of(found)
    patches = {path: set(patches_in(source, ours)) for path, source in found.items()}
    assert {p: more for p, each in patches.items() if (more := each - ALLOWED.get(p, set()))} == {}


PATCHES = {
    "pool.__class__ = Recorded": "pool.__class__",
    "Pool.offer, Pool.commit = spied_offer, spied_commit": "Pool.offer",
    "pool.offer = watch": "pool.offer",
    "flow.SLACK_US = (1, 2)": "flow.SLACK_US",
    "growth._table = 3": "growth._table",
    "monkeypatch.setattr(flow, 'room', f)": "flow.room",
    "monkeypatch.setattr(session, 'on_message', f)": "session.on_message",
    "monkeypatch.setattr('wanspec_kernels.wire.decode', f)": "wanspec_kernels.wire.decode",
    "patch.setattr(type(home), 'begins', f)": "type(home).begins",
    "setattr(Pool, 'offer', f)": "setattr(Pool, 'offer', f)",
}
FINE = (
    "self.offer = 1",
    "drafters.on_draft = call",
    "monkeypatch.setattr(os, 'listdir', f)",
    "monkeypatch.setattr('socket.create_connection', f)",
    "record.mended = now",
)


@pytest.mark.parametrize("statement", [*PATCHES, *FINE])
def test_a_patch_is_seen(statement: str) -> None:
    ours = Classes()
    ours.visit(
        ast.parse(
            "class Pool:\n def __init__(self): self._table = 1\n"
            " def offer(self): ...\n def commit(self): ...\n"
            "class Socket:\n def __init__(self): self.on_draft = print\n"
        )
    )
    imports = "import os, socket\nfrom drafter import flow\nfrom wanspec_kernels.x import Pool\n"
    found = list(patches_in(f"{imports}{statement}\n", ours))
    assert found[:1] == ([PATCHES[statement]] if statement in PATCHES else [])
