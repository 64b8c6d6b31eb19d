"""Which definitions a piece of code reaches: functions, classes and constants.

Files are parsed, never imported. Every name that a definition mentions is followed, through imports and re-exports, at
any depth. This may reach too much (a local variable with the name of a function) and never too little, except for
look-ups by text: `getattr(module, name)` and `importlib` are not followed.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from slimnb.errors import ParameterError, SlimnbError

SKIPPED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores", "annotation", "returns")
"""Fields of a syntax tree that change nothing of what a definition computes."""
SKIPPED_NODES = (ast.Import, ast.ImportFrom, ast.Raise)
"""Statements that change no number: where a name comes from, and what an error says."""
SKIPPED_DECORATORS = ("checked", "runtime_checkable")
"""Decorators that change no number: they can only raise an error."""


@dataclass
class Module:
    """What a file defines at its top level, and what its names stand for."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)  # name -> dotted name it stands for
    effects: list[ast.stmt] = field(default_factory=list)  # statements that run at import and define nothing


def reached(roots: Sequence[str], folders: Mapping[str, Path] | None = None) -> dict[str, str]:
    """Return every definition that `roots` reach, by dotted name, as text that is the same on every Python.

    A root is a module ("slimnb.nn.layers": all of it), a definition in one, or a method ("...Recipe.net"): then the
    method and those of its class that it calls on `self`. The packages of `folders` (name -> folder) are followed, by
    default slimnb and those of the roots. Raises ParameterError for an unknown root.
    """
    return Reader(_folders(roots) if folders is None else folders).reached(roots)


def _folders(roots: Sequence[str]) -> dict[str, Path]:
    folders = {}
    for name in dict.fromkeys(("slimnb", *(root.partition(".")[0] for root in roots))):
        spec = importlib.util.find_spec(name)  # of a top-level package: nothing is imported
        if spec is not None and spec.submodule_search_locations:
            folders[name] = Path(next(iter(spec.submodule_search_locations)))
    return folders


class Reader:
    """Reads the files of some packages, each file once."""

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = {name: Path(folder) for name, folder in folders.items()}
        self.texts: dict[str, str] = {}
        self.modules: dict[str, Module | None] = {}

    def reached(self, roots: Sequence[str], strict: bool = True) -> dict[str, str]:
        """As the function of that name; unless `strict`, a root that these packages do not define is left out."""
        waiting = [target for root in roots for target in self._targets(root, strict)]
        while waiting:
            name = waiting.pop()
            if name not in self.texts:
                nodes, module = self._nodes(name)
                self.texts[name] = ";".join(_form_of(node) for node in nodes)
                for node in nodes:
                    waiting += self._mentioned(node, module, name)
                waiting += [f"{module}:effects"] if self.module(module).effects else []
        return self.texts

    def module(self, name: str) -> Module | None:
        """Return the module of that dotted name, or None if these packages have none."""
        if name not in self.modules:
            path = self.path(name)
            self.modules[name] = None if path is None else _read(name, path.name == "__init__.py", path.read_bytes(),
                                                                 _stub(path))
        return self.modules[name]

    def source(self, name: str) -> str:
        """The lines of a definition as `shown` has them, comments too; "" of what is not found."""
        nodes = [(node, self.path(home)) for target in self._targets(name, strict=True)
                 for nodes, home in [self._nodes(target)] for node in nodes]
        return "\n".join(shown(_text_of(node, path.read_text(encoding="utf-8"))) for node, path in nodes)

    def path(self, name: str) -> Path | None:
        """Return the file of a module, or None."""
        package, *parts = name.split(".")
        if package not in self.folders:
            return None
        base = self.folders[package].joinpath(*parts)
        paths = (base / "__init__.py", *([base.with_suffix(".py")] if parts else []))
        return next((path for path in paths if path.is_file()), None)

    def _targets(self, name: str, strict: bool = False) -> list[str]:
        """The definitions a dotted name stands for, as "module:name"; [] for what lies outside these packages."""
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            module = self.module(".".join(parts[:cut]))
            if module is not None:
                return self._inside(".".join(parts[:cut]), module, parts[cut:], strict)
        if strict:
            raise _unknown(name)
        return []

    def _inside(self, home: str, module: Module, rest: list[str], strict: bool) -> list[str]:
        if not rest:
            return [f"{home}:{name}" for name in module.definitions]
        first, *more = rest
        if first in module.definitions:
            owner = module.definitions[first][-1]
            if more and isinstance(owner, ast.ClassDef) and strict:
                return self._methods(home, first, more[0]) or _fail(_unknown(f"{home}.{first}.{more[0]}"))
            return [f"{home}:{first}"]
        if first in module.imports:
            return self._targets(".".join([module.imports[first], *more]), strict)
        if strict:
            raise _unknown(".".join([home, *rest]))
        return []

    def _methods(self, home: str, owner: str, method: str) -> list[str]:
        """The method as the class or the first of its bases that has it defines it."""
        node = self.module(home).definitions[owner][-1]
        if any(getattr(part, "name", None) == method for part in node.body):
            return [f"{home}:{owner}.{method}"]
        for base in node.bases:
            for target in self._resolve(_chain(base) or [], home):
                place, _, name = target.partition(":")
                if isinstance(self.module(place).definitions[name][-1], ast.ClassDef):
                    targets = self._methods(place, name, method)
                    if targets:
                        return targets
        return []

    def _nodes(self, target: str) -> tuple[list[ast.stmt], str]:
        home, _, name = target.partition(":")
        module = self.module(home)
        if name == "effects":
            return module.effects, home
        owner, _, method = name.partition(".")
        nodes = module.definitions[owner]
        if method:
            nodes = [part for part in nodes[-1].body if getattr(part, "name", None) == method]
        return nodes, home

    def _mentioned(self, node: ast.stmt, home: str, target: str) -> list[str]:
        owner, _, method = target.partition(":")[2].partition(".")
        targets = []
        for chain in _chains_of(node):
            if method and len(chain) > 1 and chain[0] in ("self", "cls"):
                targets += self._methods(home, owner, chain[1])
            elif method and chain[0] == "super()":
                bases = [base for part in self.module(home).definitions[owner][-1].bases
                         for base in self._resolve(_chain(part) or [], home)]
                targets += [inherited for base in bases for inherited in self._methods(*base.split(":"), chain[1])]
            else:
                targets += self._resolve(chain, home)
        return targets

    def _resolve(self, chain: list[str], home: str) -> list[str]:
        """The definitions that a chain of names ("probes", "take") stands for in the module `home`."""
        module = self.module(home)
        if not chain or (chain[0] not in module.definitions and chain[0] not in module.imports):
            return []
        return self._inside(home, module, chain, strict=False)


def _fail(error: Exception):
    raise error


def _unknown(name: str) -> SlimnbError:
    return ParameterError(f"{name[:90]}", "there is no such module or definition", "Check the name.")


def _stub(path: Path) -> bytes:
    stub = path.with_suffix(".pyi")
    return stub.read_bytes() if stub.is_file() else b""


@lru_cache(maxsize=512)  # keyed by what a file holds, so a changed file is read anew
def _read(name: str, is_package: bool, source: bytes, stub: bytes) -> Module:
    module = Module()
    for text in (stub, source):  # a package whose names are imported on first use says in its stub what they are
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if hasattr(node, "decorator_list"):
                node.decorator_list = [each for each in node.decorator_list
                                       if getattr(each, "id", "") not in SKIPPED_DECORATORS]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module.imports |= _imported(node, name, is_package)
        for node in tree.body if text is source else []:
            names = _defined(node)
            for definition in names:
                module.definitions.setdefault(definition, []).append(node)
            if not names and not _says_nothing(node) and not _is_typing(node):
                module.effects.append(node)
    return module


def _imported(node: ast.Import | ast.ImportFrom, name: str, is_package: bool) -> dict[str, str]:
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname
                else alias.name.partition(".")[0] for alias in node.names}
    parts = name.split(".")
    base = parts[: len(parts) - node.level + is_package] if node.level else []
    origin = ".".join([*base, *([node.module] if node.module else [])])
    return {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement at the top level of a file defines, those in its branches among them."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, SKIPPED_NODES) or _is_typing(node):
        return []
    loops = [part for part in ast.walk(node) if isinstance(part, ast.comprehension)]
    inner = {id(name) for loop in loops for name in ast.walk(loop.target)}
    return [name.id for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and id(name) not in inner]


def _is_typing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@lru_cache(maxsize=8192)  # nodes are `_read`'s, the same for all readers of a file that has not changed
def _form_of(node: ast.stmt) -> str:
    return form(node)


@lru_cache(maxsize=8192)
def _chains_of(node: ast.stmt) -> list[list[str]]:
    return [list(chain) for chain in dict.fromkeys(map(tuple, _chains(node)))]


def mentioned(script: str, within: Sequence[str] = ()) -> list[str]:
    """Return the dotted names that a script imports and its code mentions: ["slimnb.nets.vgg.VGG"].

    With `within` these are only the names among the arguments of calls of functions so named.
    """
    tree = ast.parse(script)
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports |= _imported(node, "", False)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [node for node in calls if (_chain(node.func) or [""])[-1] in within]
    nodes = [argument for call in calls for argument in call.args] if within else [tree]
    chains = [chain for node in nodes for chain in _chains(node) if chain[0] in imports]
    return [".".join([imports[first], *rest]) for first, *rest in chains]


def _chain(node: ast.AST) -> list[str] | None:
    """["a", "b"] of the expression a.b, ["super()", "b"] of super().b; None of anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        return [node.id, *reversed(names)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super" and names:
        return ["super()", *reversed(names)]
    return None


def _chains(node: ast.AST) -> Iterator[list[str]]:
    chain = _chain(node)
    if chain:
        yield chain
        return
    for name, value in ast.iter_fields(node):
        if name not in SKIPPED_FIELDS:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST) and not _says_nothing(part):
                    yield from _chains(part)


# -- a definition as text ---------------------------------------------------------------------------------


def _text_of(node: ast.stmt, text: str) -> str:
    """The lines of a statement, from its first decorator on, those in SKIPPED_DECORATORS too."""
    lines = text.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    while first > 1 and lines[first - 2].lstrip().startswith("@"):
        first -= 1
    return "".join(lines[first - 1: node.end_lineno])


def shown(text: str) -> str:
    """A definition's source for a reader: at the left margin, without docstrings; comments and layout stay.

    A body that was its docstring alone becomes "...", so that the result is valid Python.
    """
    margin = text[: len(text) - len(text.lstrip(" \t"))]
    lines = [line.removeprefix(margin) for line in text.split("\n")]  # in a text of several lines some begin before it
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    owners = [node for node in ast.walk(ast.parse("\n".join(lines)))
              if isinstance(node, kinds) and _is_docstring(node.body[0])]
    for owner in sorted(owners, key=lambda node: -node.body[0].lineno):  # from the last, so lines keep their numbers
        _cut(lines, *owner.body[:2])
    return "\n".join(lines).rstrip()


def _cut(lines: list[str], docstring: ast.stmt, after: ast.stmt | None = None) -> None:
    """Take a docstring out of `lines`, with the empty lines below it; `after` is the next statement of its body."""
    first, last = docstring.lineno - 1, docstring.end_lineno - 1
    same = after is not None and after.lineno - 1 == last  # "doc"; x = 1
    before = lines[first].encode()[: docstring.col_offset].decode()  # a syntax tree counts bytes
    rest = lines[last].encode()[after.col_offset if same else docstring.end_col_offset:].decode()
    line = before + ("" if after else "...") + (rest.lstrip() if after else rest)
    end = last + 1
    while not line.strip() and not lines[end].strip():
        end += 1
    lines[first:end] = [line] if line.strip() else []


def form(node: object) -> str:
    """Write a syntax tree as text that depends on what it computes and on nothing else, on every Python version.

    Comments, layout, docstrings, annotations, imports and errors are left out. `ast.dump` would not do, since it shows
    fields that come and go, nor `ast.unparse`, since its quoting changes.
    """
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr[{','.join(_pieces(node))}]"
    if isinstance(node, ast.AST):
        fields = [f"{name}={form(value)}" for name, value in ast.iter_fields(node)
                  if name not in SKIPPED_FIELDS and value is not None and value != []]
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(form(item) for item in node if not _says_nothing(item))}]"
    return f"{type(node).__name__}:{node!r}"


def _pieces(node: ast.JoinedStr) -> list[str]:
    pieces: list[str] = []
    text = ""
    for value in node.values:
        if isinstance(value, ast.Constant):
            text += value.value
        else:
            pieces += [repr(text)] * bool(text) + [form(value)]
            text = ""
    return pieces + [repr(text)] * bool(text)


def _says_nothing(node: object) -> bool:
    """Whether no number depends on it: a docstring, an import, an error, a check that can only raise one."""
    if isinstance(node, ast.If) and not node.orelse:
        return all(map(_says_nothing, node.body))
    return _is_docstring(node) or isinstance(node, SKIPPED_NODES)


def _is_docstring(node: object) -> bool:
    """A string standing alone as a statement, wherever it stands: it says, it does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
