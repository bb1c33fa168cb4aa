"""Pictures into a film: MP4 through an ffmpeg program, GIF through Pillow alone.

ffmpeg is found on the PATH, or in the package imageio-ffmpeg (extra `video`), which brings the program along. It runs
as a process of its own that is fed with pixels; nothing is linked against it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import written_aside
from .style import BACKGROUND, FAINT, INK, PANEL, WHITE, class_color

INSTALL_ENCODER = "pip install 'bevdet-core[video]', or put an ffmpeg program on the PATH"
STILL_SECONDS = 0.5  # how long a film of a single moment lasts
LONGEST_PAUSE = 5.0  # seconds; a longer gap between two frames is shortened to it


class VideoError(OSError):
    """A film that could not be written; the message says why."""


def find_encoder() -> str | None:
    """The ffmpeg program that writes MP4 here, or None."""
    if program := shutil.which("ffmpeg"):
        return program
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return None
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:  # the package without its program, as it comes from its source alone
        return None


def write_video(pictures: Iterable[Image.Image], times: Sequence[float], path: str | Path) -> Path:
    """Write pictures as a film that plays as fast as they were taken.

    Args:
        pictures: one for each time; all are brought to the size of the first.
        times: seconds, in order. The rate of an MP4 is that of the median step, and a picture before a gap is shown for
            as long as the gap lasts, but not longer than `LONGEST_PAUSE`.
        path: an .mp4 or .gif file; complete or absent at any moment.

    Raises:
        ValueError: a suffix that is neither, or no picture.
        VideoError: no encoder, or it failed.
    """
    path = Path(path)
    step, repeats = _timing(times)
    with written_aside(path) as aside:
        if path.suffix.lower() == ".mp4":
            _write_mp4(_repeated(pictures, repeats), 1 / step, aside)
        elif path.suffix.lower() == ".gif":
            _write_gif(pictures, [step * count for count in repeats], aside)
        else:
            raise ValueError(f"{path}: a film is an .mp4 or a .gif file")
    return path


def _timing(times: Sequence[float]) -> tuple[float, list[int]]:
    """The step between frames in seconds, and for how many steps each frame is shown."""
    if not len(times):
        raise ValueError("a film needs at least one picture")
    steps = np.diff(np.asarray(times, np.float64)).clip(0, LONGEST_PAUSE)
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else STILL_SECONDS
    return step, [max(1, round(pause / step)) for pause in steps] + [1]


def _repeated(pictures: Iterable[Image.Image], repeats: Sequence[int]) -> Iterator[Image.Image]:
    for picture, count in zip(pictures, repeats, strict=True):
        yield from [picture] * count


def _alike(pictures: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """The pictures in the size of the first, with even sides, which the encoder wants."""
    size: tuple[int, int] | None = None
    for picture in pictures:
        size = size or (picture.width + picture.width % 2, picture.height + picture.height % 2)
        if picture.size != size:
            canvas = Image.new("RGB", size)
            canvas.paste(picture)
            picture = canvas
        yield picture


def _write_mp4(pictures: Iterable[Image.Image], rate: float, path: Path) -> None:
    program = find_encoder()
    if program is None:
        raise VideoError(f"MP4 needs an encoder, and there is none: {INSTALL_ENCODER}")
    frames = _alike(pictures)
    first = next(frames)
    command = [program, "-loglevel", "error", "-nostdin", "-y"]
    command += ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{first.width}x{first.height}"]
    command += ["-framerate", str(Fraction(rate).limit_denominator(1000)), "-i", "pipe:0"]
    # H.264 with halved colour planes is what every browser and player shows; with the index first it starts at once.
    command += ["-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command += ["-f", "mp4", str(path)]
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=told)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the encoder has ended, and has said why
                for picture in itertools.chain([first], frames):
                    process.stdin.write(picture.tobytes())
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        if status:
            told.seek(0)
            reason = told.read().decode(errors="replace").strip() or f"exit status {status}"
            raise VideoError(f"{program} could not encode the film: {reason}")


def _write_gif(pictures: Iterable[Image.Image], seconds: Sequence[float], path: Path) -> None:
    frames = (_reduce_colors(picture) for picture in _alike(pictures))
    first = next(frames)
    durations = [
        10 * max(2, round(100 * s)) for s in seconds
    ]  # ms; GIF counts hundredths, players refuse fewer than two
    first.save(path, "GIF", save_all=True, append_images=frames, duration=durations, loop=0)


def _reduce_colors(picture: Image.Image) -> Image.Image:
    """256 colours: most of them the photographs', the rest those of lines, which cover too little to be counted."""
    drawn = [BACKGROUND, PANEL, INK, FAINT, WHITE, *map(class_color, range(51))]
    count = 256 - len(drawn)
    photographed = picture.quantize(count, Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*photographed[: 3 * count], *itertools.chain.from_iterable(drawn)])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)  # dithered, what stands still would flicker
