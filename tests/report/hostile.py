"""Names with special characters of HTML, Markdown, LaTeX, Jinja and Matplotlib, which must appear as text."""

from __future__ import annotations

from html.parser import HTMLParser

SCRIPT = "<script>alert(1)</script>&\"'$x_1$"
#: Every character with a special meaning in LaTeX or Markdown.
PUNCTUATION = r"""all of & % $ # _ { } ~ ^ \ < > | " ' ` - [ ] * ! ( ) @ = + ; : / ?"""

NAMES = {
    "a script": SCRIPT,
    "all punctuation": PUNCTUATION,
    "the end of a script": "</script></style></title>--><!--",
    "an attribute": '" onload="alert(2)" x="',
    "a template": "{{ 7*7 }}{% raw %}{# no #}",
    "mathematics": "$x^2$ and $\\frac{1}{$",
    "a line break": "two\nlines\r\nthree",
    "marks of direction": "left\u200f\u202eright\u202c",
    "Markdown": "**bold** _em_ [link](http://x.example) ![image](x) `code` ~~gone~~ <br>",
    "an address": "https://x.example and www.x.example and <http://x.example>",
    "a row of a table": "| a | b |\\| c",
    "backslashes": r"C:\new\table\\",
    "an entity": "&lt;b&gt; &amp; &#60;",
    "a star first": "*star* in front",
    "a bracket first": "[2pt] in front",
    "dashes": "--- and -- and -5 and a-b",
    "a list's item": "- item",
    "a number of a list": "1. item",
    "a heading": "# heading",
    "ligatures": "?` !` '' << >> ,,",
    "spaces first": "      six spaces in front",
}


class Element:
    """An HTML element with its text, including the text of its descendants."""

    def __init__(self, tag: str, attributes: dict[str, str | None]):
        self.tag = tag
        self.attributes = attributes
        self.text = ""
        self.children: list[Element] = []

    def all(self, tag: str) -> list[Element]:
        """Return all descendants with a tag name, in document order."""
        return [
            found
            for child in self.children
            for found in ([child] if child.tag == tag else []) + child.all(tag)
        ]

    def everything(self) -> list[Element]:
        """Return all descendants, in document order."""
        return [found for child in self.children for found in (child, *child.everything())]

    def by_id(self, id_: str) -> Element:
        """Return the descendant with an id."""
        (found,) = [one for one in self.everything() if one.attributes.get("id") == id_]
        return found


class _Parser(HTMLParser):
    _VOID = ("meta", "img", "input", "br", "hr", "link", "base")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag == "br":
            self.handle_data("\n")
        if tag not in self._VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def parse(html: str) -> Element:
    """Parse a page or a fragment; all tags must be closed and properly nested."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    (root,) = parser.open
    return root
