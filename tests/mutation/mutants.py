"""Small wrong changes to a Python file: what a careless edit of a policy could look like."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
SWAPPED_NAMES = {"min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin"}
DROPPED = (ast.Assign, ast.AugAssign, ast.Expr)
LEFT_ALONE = ("run",)  # functions that only hand their arguments to the loop


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: the function and the lines of the statement it is in, where, what was done, and the line as it was."""

    function: str
    lines: range
    line: int
    column: int
    change: str
    text: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.line}:{self.column} {self.change}"


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of the functions of a file, in order; each as a whole new source."""
    tree, lines = ast.parse(source), source.splitlines()
    zeros = _zeros(tree)
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        if function.name in LEFT_ALONE:
            continue
        for node, inside in _inside(function):
            if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Name) and node.right.id in zeros:
                continue  # + 0 or - 0
            for change, apply in _changes(node):
                yield Mutant(
                    function.name, inside, node.lineno, node.col_offset, change, lines[node.lineno - 1].strip(),
                    _changed(tree, node, apply),
                )  # fmt: skip


def _zeros(tree: ast.Module) -> set[str]:
    """Names that are 0: the first of those that a file gives the numbers of a range, as it does to rows."""
    out = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.value.args) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Tuple) and ast.unparse(node.value.func) == "range":
                out.add(ast.unparse(target.elts[0]))
    return out


def _inside(function: ast.FunctionDef) -> Iterator[tuple[ast.expr | ast.stmt, range]]:
    """Nodes of a function's body, each with the lines of its statement (of its head, if others are inside).

    The signature, annotations, decorators and docstring, and the texts of errors, are left alone.
    """

    def walk(node: ast.AST, lines: range) -> Iterator[tuple[ast.expr | ast.stmt, range]]:
        if isinstance(node, ast.FunctionDef | ast.Raise | ast.JoinedStr | ast.Assert):
            return
        if isinstance(node, ast.stmt):
            inner = getattr(node, "body", None)
            last = inner[0].lineno - 1 if inner else node.end_lineno or node.lineno
            lines = range(node.lineno, max(last, node.lineno) + 1)
        if isinstance(node, ast.expr | ast.stmt):
            yield node, lines
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.AnnAssign) and child is node.annotation):
                yield from walk(child, lines)

    for statement in function.body:
        yield from walk(statement, range(0))


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(what is told, what `_apply` does) for each change that a node allows."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in COMPARISONS:
                new = COMPARISONS[type(op)]
                yield f"{type(op).__name__} -> {new.__name__}", f"compare {i}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", "flip"
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} -> {node.value + 1}", "plus"
        if node.value:
            yield f"{node.value} -> {node.value - 1}", "minus"
    elif isinstance(node, ast.BoolOp):
        yield ("and -> or" if isinstance(node.op, ast.And) else "or -> and"), "bool"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield f"{type(node.op).__name__} -> {ARITHMETIC[type(node.op)].__name__}", "arithmetic"
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield f"{type(node.op).__name__}= -> {ARITHMETIC[type(node.op)].__name__}=", "arithmetic"
    elif isinstance(node, ast.Name) and node.id in SWAPPED_NAMES:
        yield f"{node.id} -> {SWAPPED_NAMES[node.id]}", "name"
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition negated", "negate"
    if isinstance(node, DROPPED) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        yield "statement dropped", "drop"


def _changed(tree: ast.Module, node: ast.AST, what: str) -> str:
    """The source of the tree with that node changed; the tree itself stays as it is."""
    path = _path(tree, node)
    fresh = copy.deepcopy(tree)
    parent: ast.AST = fresh
    for name, index in path[:-1]:
        value = getattr(parent, name)
        parent = value if index is None else value[index]
    name, index = path[-1]
    old = getattr(parent, name) if index is None else getattr(parent, name)[index]
    new = _apply(old, what)
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new
    return ast.unparse(ast.fix_missing_locations(fresh))


def _path(tree: ast.AST, node: ast.AST) -> list[tuple[str, int | None]]:
    for name, value in ast.iter_fields(tree):
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if child is node:
                return [(name, index)]
            if isinstance(child, ast.AST) and (rest := _path(child, node)):
                return [(name, index), *rest]
    return []


def _apply(node: ast.AST, what: str) -> ast.AST:
    if what.startswith("compare"):
        assert isinstance(node, ast.Compare)
        index = int(what.split()[1])
        node.ops[index] = COMPARISONS[type(node.ops[index])]()
    elif what in ("plus", "minus", "flip"):
        assert isinstance(node, ast.Constant)
        value = node.value
        assert isinstance(value, int | float)
        node.value = not value if what == "flip" else value + (1 if what == "plus" else -1)
    elif what == "bool":
        assert isinstance(node, ast.BoolOp)
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif what == "arithmetic":
        assert isinstance(node, ast.BinOp | ast.AugAssign)
        node.op = ARITHMETIC[type(node.op)]()
    elif what == "name":
        assert isinstance(node, ast.Name)
        node.id = SWAPPED_NAMES[node.id]
    elif what == "negate":
        assert isinstance(node, ast.If | ast.While | ast.IfExp)
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        return ast.Pass()
    return node
