"""Pictures inside a page, which so needs no other files."""

import base64
import io

from PIL import Image

WEBP_QUALITY = 82


def picture_uri(picture: Image.Image, side: int) -> str:
    """A picture of so many pixels a side at most, inside a data URI."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
