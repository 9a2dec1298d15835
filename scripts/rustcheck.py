# SPDX-License-Identifier: GPL-2.0-or-later
"""Rust sources as the checks read them: code without comments, strings and tests, the modules of a crate, and lists of exemptions.

Reads text only: no compiler, no macro is expanded. What a crate is made of begins at `src/lib.rs` and `src/main.rs` and
follows every `mod name;` that is not for tests alone.
"""
import bisect
import dataclasses
import os
import re
import sys
from pathlib import Path

TOKEN = re.compile(
    r"""
      (?P<line>//[^\n]*)
    | (?P<block>/\*)
    | (?P<raw>\b(?:b|c)?r(?P<hashes>\#*)")
    | (?P<string>\b[bc]?"|")
    | (?P<char>b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.)|[^\\'\n])')
    """,
    re.VERBOSE,
)
STRING_END = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)
BLOCK_EDGE = re.compile(r"/\*|\*/")
ATTRIBUTE = re.compile(r"#\s*!?\s*\[")
OPEN, CLOSE = "([{", ")]}"


def _blank(text):
    return re.sub(r"[^\n]", " ", text)


def _lex(text):
    """Returns the text without comments, the same without comments and strings, and the comments; offsets stay as they are."""
    plain, bare, comments, at = [], [], [], 0
    while found := TOKEN.search(text, at):
        start, kind = found.start(), found.lastgroup if found.lastgroup != "hashes" else "raw"
        plain.append(text[at:start])
        bare.append(text[at:start])
        if kind == "line":
            end = found.end()
        elif kind == "block":
            depth, end = 1, found.end()
            while depth and (edge := BLOCK_EDGE.search(text, end)):
                depth += 1 if edge.group() == "/*" else -1
                end = edge.end()
            if depth:
                end = len(text)
        elif kind == "raw":
            close = text.find('"' + found.group("hashes"), found.end())
            end = len(text) if close < 0 else close + 1 + len(found.group("hashes"))
        elif kind == "string":
            close = STRING_END.match(text, found.end())
            end = close.end() if close else len(text)
        else:
            end = found.end()
        body = text[start:end]
        comment = kind in ("line", "block")
        if comment:
            comments.append((start, body))
        plain.append(_blank(body) if comment else body)
        bare.append(_blank(body) if comment else '"' + _blank(body[1:-1]) + '"')
        at = end
    plain.append(text[at:])
    bare.append(text[at:])
    return "".join(plain), "".join(bare), comments


def matching(code, at):
    """Returns the offset behind the bracket that closes the one at `at`."""
    depth = 0
    for found in re.compile(r"[()\[\]{}]").finditer(code, at):
        depth += 1 if found.group() in OPEN else -1
        if depth == 0:
            return found.end()
    return len(code)


def skip_attributes(code, at):
    while True:
        at = re.compile(r"\s*").match(code, at).end()
        attribute = ATTRIBUTE.match(code, at)
        if not attribute:
            return at
        at = matching(code, attribute.end() - 1)


VISIBILITY = re.compile(r"pub\s*(?:\([^)]*\))?\s*")
TO_BRACE = re.compile(r"(?:(?:const|async|unsafe|extern(?:\s*\"[^\"]*\")?|default)\s+)*(?:fn|impl|mod|struct|enum|trait|union|macro_rules!)\b|extern\b|unsafe\b")
TO_SEMICOLON = re.compile(r"(?:use|const|static|type|let)\b")


def item_end(code, at):
    """Returns the offset behind the item, field, variant, arm or statement that begins at `at`."""
    at = skip_attributes(code, at)
    if visibility := VISIBILITY.match(code, at):
        at = visibility.end()
    brace = TO_BRACE.match(code, at)
    semicolon = not brace and TO_SEMICOLON.match(code, at)
    for_each = re.compile(r"[()\[\]{};,]")
    while found := for_each.search(code, at):
        mark = found.group()
        if mark in CLOSE:
            return found.start()
        if mark in OPEN:
            at = matching(code, found.start())
            if mark == "{" and brace:
                return at
            if mark == "{" and not semicolon and not re.compile(r"\s*[.?,;=]").match(code, at):
                return at
            continue
        at = found.end()
        if mark == ";" or (mark == "," and not brace and not semicolon):
            return at
    return len(code)


def _split(text):
    parts, depth, start = [], 0, 0
    for at, mark in enumerate(text):
        depth += (mark in OPEN) - (mark in CLOSE)
        if mark == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [it for it in [*parts, text[start:].strip()] if it]


def _only_in_tests(condition):
    if condition == "test":
        return True
    if all_of := re.fullmatch(r"all\s*\((.*)\)", condition, re.DOTALL):
        return any(_only_in_tests(it) for it in _split(all_of.group(1)))
    if any_of := re.fullmatch(r"any\s*\((.*)\)", condition, re.DOTALL):
        return all(_only_in_tests(it) for it in _split(any_of.group(1)))
    return False


def _is_test(attribute):
    if re.fullmatch(r"(?:\w+\s*::\s*)?test(?:\s*\(.*\))?", attribute, re.DOTALL):
        return True
    condition = re.fullmatch(r"cfg\s*\((.*)\)", attribute, re.DOTALL)
    return bool(condition) and _only_in_tests(condition.group(1).strip())


class Source:
    """One file: `text` as it is, `plain` without comments and tests, `code` without strings too, at the same offsets."""

    def __init__(self, path, root):
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.lines = self.text.split("\n")
        self._starts = [0]
        for line in self.lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self.all_plain, self.all_code, self.comments = _lex(self.text)
        self.tests = list(self._find_tests())
        self.plain, self.code = self.without_tests(self.all_plain), self.without_tests(self.all_code)

    def _find_tests(self):
        at = 0
        while found := ATTRIBUTE.search(self.all_code, at):
            end = matching(self.all_code, found.end() - 1)
            at = end
            if _is_test(self.all_code[found.end() : end - 1].strip()):
                if "!" in found.group():
                    yield 0, len(self.text)
                    return
                at = item_end(self.all_code, end)
                yield found.start(), at

    def without_tests(self, text):
        parts, at = [], 0
        for start, end in self.tests:
            parts += [text[at:start], _blank(text[start:end])]
            at = end
        return "".join([*parts, text[at:]])

    def line(self, offset):
        return bisect.bisect_right(self._starts, offset)


@dataclasses.dataclass
class Use:
    """A path in a `use`, or one in code: where it stands and what it names."""

    path: list
    name: str
    offset: int
    exported: bool
    inline: bool


@dataclasses.dataclass
class Module:
    path: tuple
    source: Source
    # The file's own module, for a module within a file.
    file: tuple
    start: int
    end: int
    children: set
    uses: list = dataclasses.field(default_factory=list)
    aliases: dict = dataclasses.field(default_factory=dict)


MOD = re.compile(r"(?<![\w.])mod\s+(?:r#)?(\w+)\s*([;{])")
USE = re.compile(r"(?<![\w.])((?:pub\s*(?:\([^)]*\))?\s*)?)use\s+(?=[\w{:$])([^;]*);")
INLINE = re.compile(r"(?<![\w:$.])\$?((?:[a-z_]\w*)(?:\s*::\s*\w+)+)")
PATH_ATTRIBUTE = re.compile(r"#\s*\[\s*path\s*=\s*\"([^\"]*)\"\s*\]")


def use_tree(text, offset, prefix=()):
    """Yields (path, name, offset) for every leaf of a tree of `use`."""
    at = 0
    for part in _split_with_offsets(text):
        piece, at = part
        found = re.match(r"\s*(?:::\s*)?((?:\w+\s*::\s*)*)\{", piece)
        if found:
            inner_end = matching(piece, found.end() - 1)
            path = [it.strip() for it in found.group(1).split("::") if it.strip()]
            yield from use_tree(piece[found.end() : inner_end - 1], offset + at + found.end(), (*prefix, *path))
            continue
        leaf = re.fullmatch(r"\s*(?:::\s*)?((?:\w+\s*::\s*)*(?:\w+|\*))(?:\s+as\s+(\w+))?\s*", piece)
        if not leaf:
            continue
        path = [*prefix, *(it.strip() for it in leaf.group(1).split("::"))]
        if len(path) > 1 and path[-1] == "self":
            path.pop()
        yield path, leaf.group(2) or path[-1], offset + at + len(piece) - len(piece.lstrip())


def _split_with_offsets(text):
    depth, start = 0, 0
    for at, mark in enumerate(text):
        depth += (mark in OPEN) - (mark in CLOSE)
        if mark == "," and depth == 0:
            yield text[start:at], start
            start = at + 1
    if text[start:].strip():
        yield text[start:], start


class Crate:
    """The modules of one library or program, and which imports which."""

    def __init__(self, name, main, root, sources):
        self.name, self.root, self.sources = name, root, sources
        self.modules = {}
        self._add_file((), main, main.parent)
        for module in self.modules.values():
            self._read_uses(module)
        for module in self.modules.values():
            self._name_aliases(module)
        self.imports = {}
        for module in self.modules.values():
            self._resolve(module)

    def _source(self, path):
        if path not in self.sources:
            self.sources[path] = Source(path, self.root)
        return self.sources[path]

    def _add_file(self, path, file, folder):
        source = self._source(file)
        self._add(path, source, path, 0, len(source.code), folder)

    def _add(self, path, source, file, start, end, folder):
        module = Module(path, source, file, start, end, set())
        self.modules[path] = module
        at = start
        while found := MOD.search(source.code, at, end):
            at = found.end()
            name = found.group(1)
            if found.group(2) == "{":
                at = matching(source.code, found.end() - 1)
                module.children.add(name)
                self._add((*path, name), source, file, found.end(), at - 1, folder / name)
                continue
            if given := self._path_attribute(source, found.start()):
                target = (source.path.parent if path == file else folder) / given
                target = Path(self.root, *_normal(target.relative_to(self.root).parts))
                below = target.parent
            elif (target := folder / f"{name}.rs").exists():
                below = folder / name
            else:
                target, below = folder / name / "mod.rs", folder / name
            if not target.exists():
                print(f"{source.name}:{source.line(found.start())}: the file of module {name} is not there", file=sys.stderr)
                continue
            module.children.add(name)
            self._add_file((*path, name), target, below)

    def _path_attribute(self, source, offset):
        """Returns the file that an attribute above `mod name;` names."""
        before = max(source.code.rfind(mark, 0, offset) for mark in ";}")
        found = PATH_ATTRIBUTE.search(source.plain, before + 1, offset)
        return found and found.group(1)

    def _read_uses(self, module):
        code = module.source.code[module.start : module.end]
        # Modules within the file read their own.
        for other in self.modules.values():
            if other.source is module.source and other.path[:-1] == module.path and other.path != other.file and other is not module:
                code = code[: other.start - module.start] + _blank(code[other.start - module.start : other.end - module.start]) + code[other.end - module.start :]
        for found in USE.finditer(code):
            for path, name, offset in use_tree(found.group(2), module.start + found.start(2)):
                module.uses.append(Use(path, name, offset, bool(found.group(1)), False))
        code = USE.sub(lambda it: _blank(it.group()), code)
        code = re.sub(r"\bpub\s*\(\s*in\b[^)]*\)", lambda it: _blank(it.group()), code)
        for found in INLINE.finditer(code):
            path = [it.strip() for it in found.group(1).split("::")]
            module.uses.append(Use(path, "", module.start + found.start(), False, True))

    def resolve(self, module, path, aliases=True):
        """Returns the module that a path leads to and what is left of the path; None for another crate's."""
        first, rest = path[0], path[1:]
        if first == "crate":
            base = ()
        elif first == "self":
            base = module.path
        elif first == "super":
            base = module.path[:-1]
            while rest and rest[0] == "super":
                base, rest = base[:-1], rest[1:]
        elif first in module.children:
            base = (*module.path, first)
        elif aliases and first in module.aliases:
            base = module.aliases[first]
        else:
            return None
        if base not in self.modules:
            return None
        while rest and rest[0] in self.modules[base].children:
            base, rest = (*base, rest[0]), rest[1:]
        return base, rest

    def _name_aliases(self, module):
        for use in module.uses:
            if not use.inline and (found := self.resolve(module, use.path, aliases=False)) and not found[1]:
                module.aliases[use.name] = found[0]

    def _resolve(self, module):
        through = {use.path[0] for use in module.uses if use.inline}
        through |= {use.path[0] for use in module.uses if not use.inline and len(use.path) > 1}
        for use in module.uses:
            found = self.resolve(module, use.path)
            if not found:
                continue
            target, rest = found
            # A module that is named and then walked through is imported where the walk ends.
            if not use.inline and not rest and not use.exported and use.name in through and use.path[0] != use.name:
                continue
            source, target = module.file, self.modules[target].file
            if source != target:
                places = self.imports.setdefault((source, target), [])
                places.append((module.source, module.source.line(use.offset), "::".join(use.path)))

    def external(self, module):
        """Yields (line, name of a crate) for every path of a module that begins elsewhere."""
        for use in module.uses:
            if not self.resolve(module, use.path):
                yield module.source.line(use.offset), use.path[0]

    def files(self):
        return [it for it in self.modules.values() if it.path == it.file]

    def label(self, path):
        return "::".join(path) if path else self.modules[()].source.path.name


def _normal(parts):
    result = []
    for part in parts:
        if part == "..":
            result.pop()
        else:
            result.append(part)
    return result


def rust_files(root, *folders):
    """Yields the Rust files below folders of a tree, build directories left out."""
    for folder in folders:
        for place, below, names in os.walk(root / folder):
            below[:] = sorted(it for it in below if it != "target")
            yield from (Path(place, it) for it in sorted(names) if it.endswith(".rs"))


def crates(root):
    """Returns the libraries and programs of the workspace, and every source that they are made of."""
    found, sources = [], {}
    for folder in sorted((root / "crates").iterdir()):
        mains = [it for it in ("lib.rs", "main.rs") if (folder / "src" / it).exists()]
        for main in mains:
            name = folder.name if main == mains[0] else f"{folder.name}/{main}"
            found.append(Crate(name, folder / "src" / main, root, sources))
    return found, sources


def circles(edges):
    """Returns the sets of modules that reach each other, largest first (Tarjan)."""
    following = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
        following.setdefault(target, [])
    index, low, stack, on_stack, result = {}, {}, [], set(), []

    def visit(node):
        work = [(node, iter(following[node]))]
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        while work:
            node, rest = work[-1]
            for after in rest:
                if after not in index:
                    index[after] = low[after] = len(index)
                    stack.append(after)
                    on_stack.add(after)
                    work.append((after, iter(following[after])))
                    break
                if after in on_stack:
                    low[node] = min(low[node], index[after])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    group = set()
                    while node not in group:
                        group.add(stack.pop())
                    on_stack.difference_update(group)
                    if len(group) > 1:
                        result.append(group)

    for node in sorted(following):
        if node not in index:
            visit(node)
    return sorted(result, key=lambda it: (-len(it), sorted(it)))


def way_back(edges, source, target):
    """Returns a shortest way from `target` to `source`: with the import of `target` it is a circle."""
    before, queue = {target: None}, [target]
    for node in queue:
        if node == source:
            break
        for start, end in sorted(edges):
            if start == node and end not in before:
                before[end] = node
                queue.append(end)
    way, node = [], source
    while node is not None:
        way.append(node)
        node = before[node]
    return way[::-1]


class Findings:
    """What a check found, against the list of what is exempt. The list can only shrink: an entry that is no longer needed is an error."""

    def __init__(self, list_file, script):
        self.list_file, self.script = list_file, script
        self.found, self.counted, self.advice = {}, set(), {}

    def add(self, key, text, counted=False):
        self.found.setdefault(key, []).append(text)
        if counted:
            self.counted.add(key)

    def _entries(self):
        if not self.list_file.exists():
            return {}
        entries = {}
        for number, line in enumerate(self.list_file.read_text(encoding="utf-8").split("\n"), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            key, _, count = line.partition(" = ")
            entries[key.strip()] = (int(count) if count else None, number)
        return entries

    def write(self):
        before = self._entries()
        if not self.found:
            self.list_file.unlink(missing_ok=True)
        else:
            lines = [f"{key} = {len(it)}" if key in self.counted else key for key, it in sorted(self.found.items())]
            head = (
                "# SPDX-License-Identifier: GPL-2.0-or-later\n"
                f"# What scripts/{self.script} still lets pass. This list may only become shorter: an entry that is no longer\n"
                f"# needed is an error. After a move, scripts/{self.script} --write-exempt writes it anew.\n"
            )
            self.list_file.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
        now = {key: len(it) if key in self.counted else None for key, it in self.found.items()}
        for key in sorted({*before, *now}):
            if key not in now:
                print(f"  - {key}")
            elif key not in before:
                print(f"  + {key}" + (f" = {now[key]}" if now[key] else ""))
            elif before[key][0] != now[key]:
                print(f"    {key}: {before[key][0]} -> {now[key]}")
        print(f"{self.list_file.name}: {len(before)} -> {len(now)} entries")

    def report(self, what):
        """Prints what is wrong. Returns whether nothing is."""
        entries, wrong = self._entries(), 0
        for key, places in sorted(self.found.items()):
            exempt, _ = entries.get(key, (0, 0))
            if key in entries and (key not in self.counted or exempt is not None and len(places) <= exempt):
                continue
            wrong += 1
            for place in places:
                print(place, file=sys.stderr)
            if key in entries:
                print(f"    (of these {len(places)}, {exempt} are exempt: {self.list_file.name}, {key})", file=sys.stderr)
        for key, (exempt, number) in entries.items():
            count = len(self.found.get(key, ()))
            if count == 0:
                wrong += 1
                print(f"{self.list_file.name}:{number}: {key}: this occurs no longer; remove this line", file=sys.stderr)
            elif key in self.counted and exempt is not None and count < exempt:
                wrong += 1
                print(f"{self.list_file.name}:{number}: {key}: only {count} are left; write {count} for {exempt}", file=sys.stderr)
        if wrong:
            print(f"{what}: {wrong} wrong (after a move: scripts/{self.script} --write-exempt, and look at what it adds)", file=sys.stderr)
        else:
            left = f"; {len(entries)} exempt" if entries else ""
            print(f"{what}: in order{left}")
        return not wrong
