"""Pictures of emoji, drawn from a font of colour bitmaps."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from data_pipelines.documents import DamagedSample

STRIKE_SIZE = 109
"""The one font size at which Noto Color Emoji holds bitmaps, of 136x128 pixels."""
EMOJI_SIDE = 128
"""Side of a picture in pixels: the middle of a bitmap, whose first and last 4 columns are empty."""


class EmojiFont:
    """Draws emoji as squares of EMOJI_SIDE pixels, over white.

    Raises ValueError for a font without bitmaps of STRIKE_SIZE, and where Pillow cannot join code points to one glyph.
    """

    def __init__(self, file: Path) -> None:
        if not features.check("raqm"):
            raise ValueError(
                "noto_emoji needs Pillow's layout engine raqm, which joins code points to one glyph: "
                "pip's wheels of Pillow hold it and load the library FriBiDi (apt-get install libfribidi0)"
            )
        try:
            self.font = ImageFont.truetype(file, STRIKE_SIZE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise ValueError(f"noto_emoji: {file} is no font with bitmaps of size {STRIKE_SIZE} ({error})") from error

        ascent, descent = self.font.getmetrics()
        self.height = ascent + descent

    def draw(self, sequence: str) -> Image.Image | None:
        """An RGB picture of EMOJI_SIDE x EMOJI_SIDE pixels; None where the font has no single glyph for the sequence.

        Code points that the font cannot join stand side by side, and one that it lacks leaves nothing to see.
        Raises DamagedSample for a bitmap that cannot be read.
        """
        try:
            width = round(self.font.getlength(sequence))
            if not 0 < width <= 1.5 * self.height:
                return None
            glyph = Image.new("RGBA", (width, self.height), (255, 255, 255, 0))
            ImageDraw.Draw(glyph).text((0, 0), sequence, font=self.font, embedded_color=True)
        except OSError as error:
            raise DamagedSample(f"its bitmap cannot be read ({error})") from error
        if glyph.getchannel("A").getbbox() is None:
            return None
        picture = Image.new("RGB", (EMOJI_SIDE, EMOJI_SIDE), "white")
        picture.paste(glyph, ((EMOJI_SIDE - width) // 2, (EMOJI_SIDE - self.height) // 2), glyph)
        return picture
