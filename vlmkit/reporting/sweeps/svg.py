"""SVG that can stand inside a page: no identifiers that clash, colours from the page, a title that is read out."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from vlmkit.reporting.sweeps.wording import one_line

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
REFERENCE = re.compile(r"url\(#([^)]+)\)")
DECIMALS = re.compile(r"(\d\.\d\d)\d+")  # a hundredth of a pixel is enough
MAX_TEXT = 500  # characters that are read out
FONT_FAMILY = re.compile(r"font-family: [^;\"]*; ?")  # the page's


def inline_svg(drawn: str, name: str, title: str, description: str, colours: Mapping[str, str]) -> str:
    """A drawing of matplotlib as an element of a page.

    Args:
        drawn: The file's text; a unit of it is shown as a pixel.
        name: Unique within the page.
        title: What the figure is, for who cannot see it.
        description: What it shows.
        colours: Name of the page's variable → the colour that it stands for in the drawing, as #rrggbb.
    """
    root = ET.fromstring(drawn)
    for child in [one for one in root if one.tag == f"{{{SVG}}}metadata" or one.find(f"{{{SVG}}}style") is not None]:
        root.remove(child)  # who drew it, and a style that would hold for the whole page
    variables = {colour: f"var(--{variable})" for variable, colour in colours.items()}
    used = _references(root)
    for element in root.iter():
        _keep_to_itself(element, name, used)
        if style := element.get("style"):
            style = re.sub("#[0-9a-f]{6}", lambda found: variables.get(found[0], found[0]), style)
            element.set("style", FONT_FAMILY.sub("", style))
        for attribute in ("d", "x", "y", "transform"):
            if value := element.get(attribute):
                element.set(attribute, DECIMALS.sub(r"\1", " ".join(value.split())))
    _describe(root, name, title, description)
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return re.sub(r">\s+<", "><", ET.tostring(root, encoding="unicode"))


def _references(root: ET.Element) -> set[str]:
    """The identifiers that something in the drawing refers to."""
    found = {link.removeprefix("#") for element in root.iter() if (link := element.get(LINK))}
    for element in root.iter():
        for value in element.attrib.values():
            found |= set(REFERENCE.findall(value))
    return found


def _keep_to_itself(element: ET.Element, name: str, used: set[str]) -> None:
    """Put the figure's name before identifiers that are used, and drop the others."""
    for attribute, value in list(element.attrib.items()):
        if attribute == "id":
            if value in used:
                element.set("id", f"{name}-{value}")
            else:
                del element.attrib["id"]
        elif attribute == LINK:
            element.set(LINK, f"#{name}-{value.removeprefix('#')}")
        elif "url(#" in value:
            element.set(attribute, REFERENCE.sub(rf"url(#{name}-\1)", value))


def _describe(root: ET.Element, name: str, title: str, description: str) -> None:
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib |= {
        "width": width, "height": height, "role": "img", "aria-labelledby": f"{name}-title {name}-description",
    }  # fmt: skip
    for tag, text in (("desc", description), ("title", title)):
        element = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        element.text = one_line(text, MAX_TEXT)
        root.insert(0, element)
