"""Time of a frame, as it is drawn on the frame."""

from __future__ import annotations

from datetime import datetime

from .pen import LIGHT, Pen, Rect

__all__ = ["clock", "draw_clock"]


def draw_clock(pen: Pen, time: float, at: float | None = None) -> Rect:
    """Draw the time of a frame in its lower left corner, and return the rectangle that the text covers.

    Args:
        pen: pen that draws on the frame.
        time: seconds of media at the frame.
        at: time of day at which the frame arrived, in Unix seconds; None to draw only ``time``.
    """
    margin = 2 * pen.pad
    room = pen.width - 2 * (margin + pen.pad)
    texts = [clock(time)]
    if at is not None:
        moment = datetime.fromtimestamp(at)
        day, hour = f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S}"
        texts = [f"{day} {hour}.{moment.microsecond // 100_000}  {clock(time)}", f"{day} {hour}", hour]
    text = next((each for each in texts if pen.text_width(each) <= room), texts[-1])
    bottom = max(pen.row, pen.height - margin)
    rect = (margin, bottom - pen.row, min(pen.width, margin + pen.text_width(text) + 2 * pen.pad), bottom)
    pen.shade(rect)
    pen.text(text, margin + pen.pad, rect[1], LIGHT)
    return rect


def clock(seconds: float) -> str:
    """Return a time in seconds as text: hours, minutes, seconds and tenths; without hours in the first hour.

    >>> clock(83.46), clock(3600)
    ('1:23.4', '1:00:00.0')
    """
    # Cut, not rounded: a clock shows a second when it has begun.
    tenths = int(seconds * 10 + 1e-6)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    ahead = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{ahead}:{rest // 10:02d}.{rest % 10}"
