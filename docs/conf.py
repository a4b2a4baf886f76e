"""Settings of the API reference and the pages beside it: `make docs`.

Docstrings are plain text with single backticks, not reStructuredText, so they are
converted before Sphinx reads them: code becomes code, with a link where it names
something documented, and every other mark is escaped.
"""

import re
import typing
from pathlib import Path
from typing import Any

import circuitcut

typing.GENERATING_DOCUMENTATION = "1"  # type: ignore[attr-defined]  # for jaxtyping

ROOT = Path(__file__).resolve().parent.parent

project = "circuitcut"
author = "the authors of circuitcut"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "circuitcut"
html_show_copyright = False
html_copy_source = False

myst_heading_anchors = 4
suppress_warnings = [
    "myst.header",  # a results page may begin below its title
    "ref.python",  # a dimension of a tensor has the name of several attributes
]
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code in docstrings that names nothing documented
    (r"py:(class|exc|data)", r"(?!circuitcut\.).*"),  # other packages, builtins
    ("py:class", r"circuitcut\..*\._\w+"),  # private
    ("py:class", r"circuitcut\..*\.(C|S|T|Config)"),  # type variables
]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
smartquotes = False

_CODE = re.compile(r"(\w?)`([^`]+)`(?=(\w?))")
_NAME = re.compile(r"[A-Za-z_][\w.]*\w")
_SECTION = re.compile(r"(Args|Raises|Returns|Yields|Attributes):$")


def _code(match: re.Match[str]) -> str:
    """One span of code, as a link if it is a name that is documented."""
    before, code, after = match.groups()
    role = ":py:obj:" if _NAME.fullmatch(code) else ""
    mark = "`" if role else "``"
    joined = "\\ "  # an inline mark must not touch a letter
    return (
        f"{before}{joined if before else ''}{role}{mark}{code}{mark}"
        f"{joined if after else ''}"
    )


def _escaped(text: str) -> str:
    """Plain text, in which no character is markup."""
    text = text.replace("\\", "\\\\")
    text = re.sub(r"(?<=\S)\*|\*(?=\S)", r"\\*", text)
    text = text.replace("|", r"\|")
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _converted(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText; indented lines outside sections are code."""
    text = "\n".join(lines)
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_escaped(text[end : match.start()]), _code(match)]
        end = match.end()
    converted = "".join([*parts, _escaped(text[end:])]).split("\n")
    out: list[str] = []
    in_section = in_code = False
    for original, line in zip(text.split("\n"), converted, strict=True):
        if original and not original[0].isspace():
            in_section, in_code = bool(_SECTION.fullmatch(original)), False
        elif original and not in_section and not in_code and out and not out[-1]:
            out += ["::", ""]
            in_code = True
        out.append(original if in_code else line)
    return out


def _convert(
    _: Any, __: str, ___: str, ____: Any, _____: Any, lines: list[str]
) -> None:
    lines[:] = _converted(lines)


def _signature(
    _: Any, __: str, ___: str, ____: Any, _____: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Default factories as an ellipsis, so that the signature stays parseable."""
    if not signature or "<factory>" not in signature:
        return None
    return signature.replace("<factory>", "...").replace("~", ""), returns


def _modules(_: Any, __: str, source: list[str]) -> None:
    """Put every module of a package where a page has `<!-- modules: package -->`."""
    source[0] = re.sub(
        r"^<!-- modules: (\w+) -->$",
        lambda match: "\n".join(_of_package(match[1])),
        source[0],
        flags=re.MULTILINE,
    )
    if "<!-- public names -->" in source[0]:
        source[0] = source[0].replace("<!-- public names -->", _public_names())


def _public_names() -> str:
    """A table of the names of `circuitcut`, each with its docstring's first line."""
    rows = ["| name | module | what it is |", "|---|---|---|"]
    for name in circuitcut.__all__:
        module = circuitcut._MODULE_OF[name]
        doc = getattr(circuitcut, name).__doc__ or ""
        is_table = isinstance(getattr(circuitcut, name), dict)
        summary = "A table by name." if is_table else doc.strip().split("\n")[0]
        package = module.split(".")[0]
        link = f"[`{module}`]({package}.md)"
        rows.append(f"| `{name}` | {link} | {summary.replace('|', ' or ')} |")
    return "\n".join(rows)


def _of_package(folder: str) -> list[str]:
    lines: list[str] = []
    paths = [p for p in (ROOT / folder).rglob("*.py") if p.name != "__init__.py"]
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        relative = path.relative_to(ROOT).with_suffix("")
        name = ".".join(("circuitcut", *relative.parts))
        lines += [f"## {name.removeprefix('circuitcut.')}", ""]
        lines += ["```{eval-rst}", f".. automodule:: {name}", "```", ""]
    return lines


def setup(app: Any) -> None:
    """Connect the conversions; called by Sphinx."""
    app.connect("autodoc-process-docstring", _convert, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("source-read", _modules)
