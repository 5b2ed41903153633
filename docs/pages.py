"""The pages of the site, as a hook of mkdocs: `make docs`.

The texts keep their places in the repository, so that a link between them works in both. Beside
them the site has the notebook as text, a page of the API for each room, and the source of every
module and of every file that a text names, to which its name becomes a link.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).parent.parent
FIRST = ["README.md", "docs/first_hour.ipynb", "docs/tour.md"]
LAST = ["launch/README.md", "bench/RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md"]
FENCE = re.compile(r"^(```+).*?^\1$", re.M | re.S)
CODE = re.compile(r"(?<!\[)`([\w./-]+/[\w.-]+\.\w+)`(?!\])")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
STYLE = """
.wy-nav-content { max-width: 64rem; }
.rst-content div[class^="highlight"] { border: 0; padding: 0; }
.rst-content details { margin-bottom: 2rem; }
"""


def texts() -> list[str]:
    """Paths of all texts of the repository, in the order of the site."""
    others = sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - set(FIRST))
    return [*FIRST, *others, *LAST]


def modules() -> dict[str, list[str]]:
    """The modules of each room, and of the doors, by their full names."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "gptjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__":
            room = parts[1] if len(parts) > 2 else "doors"
            found.setdefault(room, []).append(".".join(parts))
    return found


def page_of(path: str) -> str:
    """The page that shows a file of the repository; a picture shows itself."""
    if path.endswith((".md", ".png")):
        return path
    if path in FIRST:
        return str(Path(path).with_suffix(".md"))
    return f"source/{path}.html"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give the site its table of contents and its style."""
    reference = ["reference/gptjax.md", *(f"reference/{room}.md" for room in modules())]
    config.extra_css = ["site.css"]
    config.nav = [*map(page_of, texts()), {"Reference": reference}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ with those of the whole site."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = {page_of(path): (ROOT / path).read_bytes() for path in texts()}
    pages |= {page_of(path): notebook_text(path).encode() for path in FIRST if "ipynb" in path}
    pages |= {f"docs/{p.name}": p.read_bytes() for p in (ROOT / "docs").glob("*.png")}
    pages |= {f"reference/{name}.md": text.encode() for name, text in reference().items()}
    named = {path for text in pages if text.endswith(".md") for path in named_in(text, pages[text])}
    named |= {f"{name.replace('.', '/')}.py" for names in modules().values() for name in names}
    pages |= {uri: source(path).encode() for path in named if (uri := page_of(path)) not in pages}
    pages["site.css"] = (HtmlFormatter().get_style_defs(".highlight") + STYLE).encode()
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of the names of files, and send links to files to the pages that show them."""
    here = page.file.src_uri

    def to(path: str) -> str:
        return relpath(page_of(path), dirname(here))

    def of_code(found: re.Match[str]) -> str:
        return f"[{found[0]}]({to(found[1])})" if (ROOT / found[1]).is_file() else found[0]

    def of_link(found: re.Match[str]) -> str:
        path = target(here, found[1])
        return f"]({to(path)}{found[2] or ''})" if (ROOT / path).is_file() else found[0]

    return outside_fences(markdown, lambda text: CODE.sub(of_code, LINK.sub(of_link, text)))


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Apply `change` to all of a text but its fenced blocks."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def target(page: str, link: str) -> str:
    """Path in the repository of a relative link on a page."""
    return relpath(f"/{dirname(page)}/{link}", "/")


def named_in(page: str, content: bytes) -> set[str]:
    """The files of the repository that a page names or links to."""
    text = FENCE.sub("", content.decode())
    paths = {found[1] for found in CODE.finditer(text)}
    paths |= {target(page, found[1]) for found in LINK.finditer(text)}
    return {path for path in paths if (ROOT / path).is_file()}


def notebook_text(path: str) -> str:
    """The cells of a notebook: text as it is, code in fenced blocks, no outputs."""
    cells = json.loads((ROOT / path).read_text())["cells"]
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell in cells
        for text in ["".join(cell["source"])]
    )


def reference() -> dict[str, str]:
    """The pages of the API: what `import gptjax` offers, and every room."""
    face = ast.parse((ROOT / "gptjax/__init__.py").read_text())
    offered = sorted(
        f"- [`gptjax.{name.name}`][{node.module}.{name.name}]"
        for node in ast.walk(face)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gptjax")
        for name in node.names
    )
    pages = {"gptjax": f"# import gptjax\n\n{ast.get_docstring(face)}\n\n" + "\n".join(offered)}
    for room, names in modules().items():
        parts = [f"::: {name}\n\nSource: `{name.replace('.', '/')}.py`\n" for name in names]
        pages[room] = "\n".join([f"# {room}\n", *parts])
    return pages


def source(path: str) -> str:
    """A file as a page of its own, with colours and line numbers."""
    text = (ROOT / path).read_text()
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(text, lexer, HtmlFormatter(full=True, title=path, linenos="inline"))
