# SPDX-License-Identifier: Apache-2.0
"""Reads C++ just well enough for the checks of this folder: blanks out comments and literals, and walks the braces to tell
namespaces, types and functions apart. It relies on the formatting that check_format enforces; it is no parser and needs no compiler.
"""
import os
import re
from dataclasses import dataclass, field

SKIPPED_FOLDERS = {"build", ".git", ".cache", "runs", "__pycache__", ".bundle", ".device-out"}


def source_files(root, folders=("src", "tests"), endings=(".h", ".cpp", ".cu", ".cuh")):
    """Paths relative to root, sorted."""
    found = []
    for folder in folders:
        for where, names, files in os.walk(os.path.join(root, folder)):
            names[:] = sorted(n for n in names if n not in SKIPPED_FOLDERS and not n.startswith("build-"))
            found += [os.path.relpath(os.path.join(where, f), root) for f in files if f.endswith(endings)]
    return sorted(found)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def _blank(text):
    return re.sub(r"[^\n]", " ", text)


_TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|R"([^()\\ ]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'', re.S)


def blank_literals(text):
    """Same length and lines, with the content of comments, strings and characters replaced by spaces."""

    def replace(match):
        token = match.group(0)
        if token.startswith(("//", "/*")):
            return _blank(token)
        first = token.index('"') if token[0] in 'R"' else 0
        return token[first] + _blank(token[first + 1:-1]) + token[-1] if first == 0 else " " + token[first] + _blank(
            token[first + 1:-1]) + token[-1]

    return _TOKEN.sub(replace, text)


def blank_directives(text):
    """Preprocessor lines, with their continuations, replaced by spaces."""
    return re.sub(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", lambda match: _blank(match.group(0)), text, flags=re.M)


@dataclass
class Scope:
    kind: str  # namespace, type, function, other
    head: str
    line: int


@dataclass
class Statement:
    """One declaration: everything up to a `;` or `{` at namespace or type level."""
    head: str
    line: int
    brace_line: int  # of the `{`, or of the `;`
    end_line: int
    opens: str  # kind of the scope that its `{` opens, or "" after `;`
    level: str  # namespace or type


@dataclass
class Scan:
    statements: list = field(default_factory=list)
    statics: list = field(default_factory=list)  # (line, text) of `static` or `thread_local` inside functions


def _kind_of(head, before):
    """What a brace opens at namespace or type level, by the text in front of it."""
    words = re.sub(r"\btemplate\s*<(?:[^<>]|<[^<>]*>)*>|\[\[[^\]]*\]\]|\brequires\b[^{]*$", " ", head).strip()
    if re.match(r"(inline\s+)?namespace\b|extern\s+\"", words):
        return "namespace"
    if re.match(r"(typedef\s+)?(class|struct|union|enum)\b", words) and not re.search(r"\)\s*(const|noexcept)?\s*$", words):
        return "type"
    if before in (" ", "\n") and "(" in words and not words.rstrip().endswith(("=", ",", "(", "return")):
        return "function"
    return "other"


def scan(text):
    clean = blank_directives(blank_literals(text))
    result = Scan()
    stack = [Scope("namespace", "", 1)]
    head, head_line, line = "", 1, 1
    open_statements = []
    parens = 0
    for position, char in enumerate(clean):
        if char == "\n":
            line += 1
        outer = stack[-1].kind in ("namespace", "type")
        if char == "{":
            kind = "other"
            if outer and parens == 0:
                kind = _kind_of(head, clean[position - 1])
            elif stack[-1].kind == "function":
                kind = "block"
            stack.append(Scope(kind, head, line))
            if outer and kind != "other":
                statement = Statement(head.strip(), head_line, line, line, kind, stack[-2].kind)
                result.statements.append(statement)
                open_statements.append(statement)
                head = ""
            else:
                open_statements.append(None)
                if outer:
                    head += char
            stack[-1].parens = parens
            parens = 0 if kind != "other" else parens
        elif char == "}":
            if len(stack) > 1:
                closed = stack.pop()
                parens = closed.parens
                statement = open_statements.pop()
                if statement is not None:
                    statement.end_line = line
                    head = ""
                elif stack[-1].kind in ("namespace", "type"):
                    head += char
        elif outer:
            parens += (char == "(") - (char == ")")
            if char == ";" and parens == 0:
                if head.strip():
                    result.statements.append(Statement(head.strip(), head_line, line, line, "", stack[-1].kind))
                head = ""
            elif stack[-1].kind == "type" and char == ":" and re.fullmatch(r"\s*(public|private|protected)\s*", head):
                head = ""
            else:
                if not head.strip() and not char.isspace():
                    head_line = line
                head += char
    _find_statics(clean, result)
    return result


def _find_statics(clean, result):
    inside = set()
    for statement in result.statements:
        if statement.opens == "function":
            inside.update(range(statement.brace_line + 1, statement.end_line + 1))
    for number, text in enumerate(clean.split("\n"), 1):
        if number in inside and re.match(r"\s+(static|thread_local)\s", text):
            result.statics.append((number, text.strip()))
