"""Makes the site of the pages as they lie in the repository: READMEs become pages, links to code become text, and
formulas MathML, which browsers draw without a script from elsewhere."""

import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
#: Pages that lie outside of docs/ -> their names in the site.
OUTSIDE = {
    "README.md": "index.md",
    "datasets/README.md": "datasets.md",
    "configs/README.md": "configs.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_STAND_IN = re.compile(r"formula(block|inline)([0-9a-f]+)x")
_INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?!\w)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = next((path for path, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    parts = _CODE.split(_LINK.sub(lambda match: _link(match, source, files), markdown))
    # Odd parts are code, where a dollar is a dollar.
    parts[::2] = [_without_formulas(part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the formulas in, which Markdown would take for blocks of HTML at the beginning of a line."""
    return _STAND_IN.sub(lambda match: _formula(match[1], bytes.fromhex(match[2]).decode()), html)


def _link(match: re.Match, source: str, files: Files) -> str:
    image, text, target, anchor = match.groups()
    if not target or "://" in target or target.startswith("mailto:"):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (REPOSITORY / path).exists():
        raise ValueError(f"{source}: the link to {target} leads nowhere")
    name = OUTSIDE.get(path, path.removeprefix("docs/"))
    if files.get_file_from_path(name) is None:
        return text
    return f"{image}[{text}]({name}{anchor or ''})"


def _without_formulas(text: str) -> str:
    text = _DISPLAY.sub(lambda match: f"\n\n{_stand_in('block', match[1])}\n\n", text)
    return _INLINE.sub(lambda match: _stand_in("inline", match[1]), text)


def _stand_in(display: str, formula: str) -> str:
    return f"formula{display}{formula.strip().encode().hex()}x"


def _formula(display: str, formula: str) -> str:
    return convert(formula, display=display)
