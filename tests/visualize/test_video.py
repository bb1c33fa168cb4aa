"""Scenes as films and recordings: what is written, how fast it plays, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from bevdet_core.cli import main
from bevdet_core.visualize import video, write_recording
from bevdet_core.visualize.video import VideoError, find_encoder, write_video

TIMES = (10.0, 10.5, 11.0, 12.5)  # after the third frame two are missing


def pictures(count: int = 4, size: tuple[int, int] = (63, 40)) -> list[Image.Image]:
    return [Image.new("RGB", size, (60 * k, 250 - 60 * k, 90)) for k in range(count)]


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program called ffmpeg on the PATH, and nothing else: it keeps its arguments and input, or fails."""

    def install(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        path = folder / "ffmpeg"
        path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return path

    return install


@pytest.fixture
def no_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)


class TestGif:
    def test_every_frame_lasts_as_long_as_in_the_data(self, tmp_path):
        path = write_video(pictures(), TIMES, tmp_path / "new" / "a.gif")
        durations = []
        with Image.open(path) as film:
            assert film.n_frames == 4
            assert film.info["loop"] == 0
            for k in range(4):
                film.seek(k)
                durations.append(film.info["duration"])
                np.testing.assert_allclose(film.convert("RGB").getpixel((30, 20)), (60 * k, 250 - 60 * k, 90), atol=8)
        assert durations == [500, 500, 1500, 500]
        assert [p.name for p in path.parent.iterdir()] == ["a.gif"]

    @pytest.mark.parametrize(("times", "expected"), [((5.0,), 500), ((5.0, 5.0), 500), ((0.0, 1e6), 5000)])
    def test_odd_times_still_make_a_film(self, tmp_path, times, expected):
        with Image.open(write_video(pictures(len(times)), times, tmp_path / "a.gif")) as film:
            assert film.n_frames == len(times)
            assert film.info.get("duration", 500) == expected  # Pillow writes none for a single picture


class TestMp4:
    def test_the_encoder_gets_all_pixels_at_the_true_rate(self, tmp_path, program):
        program(
            "import json\n"
            "data = sys.stdin.buffer.read()\n"
            "open(sys.argv[-1], 'wb').write(data)\n"
            f"json.dump(sys.argv[1:], open({str(tmp_path / 'said.json')!r}, 'w'))"
        )
        path = write_video(pictures(), TIMES, tmp_path / "a.mp4")
        said = (tmp_path / "said.json").read_text()
        assert '"-framerate", "2"' in said
        assert '"-video_size", "64x40"' in said  # H.264 wants even sides
        frames = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 40, 64, 3)
        shown = frames[:, 20, 30].tolist()
        expected = [[60 * k, 250 - 60 * k, 90] for k in (0, 1, 2, 2, 2, 3)]  # the gap is waited out
        assert shown == expected

    def test_what_the_encoder_says_is_told_and_nothing_is_left(self, tmp_path, program):
        path = program("sys.stdin.buffer.read()\nsys.exit('no space in here')")
        with pytest.raises(VideoError, match=f"{path} could not encode the film: no space in here"):
            write_video(pictures(), TIMES, tmp_path / "a.mp4")
        assert [p.name for p in tmp_path.iterdir()] == ["bin"]

    def test_an_encoder_that_leaves_at_once(self, tmp_path, program):
        program("sys.exit('Unknown encoder')")
        with pytest.raises(VideoError, match="Unknown encoder"):
            write_video(pictures(40, (640, 480)), np.arange(40) / 2, tmp_path / "a.mp4")

    def test_a_failing_picture_ends_the_encoder_and_leaves_nothing(self, tmp_path, program):
        program("sys.stdin.buffer.read()\nopen(sys.argv[-1], 'w').write('half')")

        def broken():
            yield from pictures(2)
            raise ValueError("frame 3 is broken")

        with pytest.raises(ValueError, match="frame 3"):
            write_video(broken(), TIMES, tmp_path / "a.mp4")
        assert not list(tmp_path.glob("*.mp4"))

    def test_a_real_encoder_writes_a_film_that_reads_back(self, tmp_path):
        program = find_encoder()
        if program is None:
            pytest.skip("no ffmpeg here")
        path = write_video(pictures(), TIMES, tmp_path / "a.mp4")
        command = [program, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
        played = subprocess.run(command, capture_output=True, check=True)
        assert " 2 fps" in played.stderr.decode()
        shown = np.frombuffer(played.stdout, np.uint8).reshape(-1, 40, 64, 3)[:, 20, 30]
        np.testing.assert_allclose(shown, [[60 * k, 250 - 60 * k, 90] for k in (0, 1, 2, 2, 2, 3)], atol=12)

    def test_without_an_encoder(self, tmp_path, no_encoder):
        assert find_encoder() is None
        with pytest.raises(VideoError, match=r"bevdet-core\[video\]"):
            write_video(pictures(), TIMES, tmp_path / "a.mp4")


def test_no_film(tmp_path):
    with pytest.raises(ValueError, match="at least one picture"):
        write_video([], [], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"a\.avi: a film is"):
        write_video(pictures(), TIMES, tmp_path / "a.avi")


class TestScene:
    @pytest.fixture
    def config(self, synthetic_root, tmp_path):
        import yaml
        from test_engine import settings

        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(settings(synthetic_root).to_dict()))
        return path

    def render(self, *words: object) -> int:
        return main(["visualize", *map(str, words)])

    def test_without_an_encoder_it_becomes_a_gif(self, config, tmp_path, capsys, no_encoder):
        assert self.render(config, "--scene", "scene-0103", "--out", tmp_path / "s.mp4", "--width", "480") == 0
        told = capsys.readouterr().out
        assert f"so this becomes {tmp_path / 's.gif'}" in told
        assert "pip install 'bevdet-core[video]'" in told
        with Image.open(tmp_path / "s.gif") as film:
            assert film.n_frames == 4
            assert film.width == 480
            assert film.info["duration"] == 500

    def test_a_detector_is_followed_through_the_scene(self, config, tmp_path):
        out = tmp_path / "s.gif"
        assert self.render(config, "--scene", "scene-0103", "--out", out, "--width", "480") == 0
        from bevdet_core import Detector
        from bevdet_core.checkpoint import save

        save(tmp_path / "m.safetensors", Detector.load(config).checkpoint())
        guessed = tmp_path / "guessed.gif"
        words = ("--scene", "scene-0103", "--out", guessed, "--width", "480", "--threshold", "0")
        assert self.render(tmp_path / "m.safetensors", *words) == 0
        with Image.open(out) as truth, Image.open(guessed) as film:
            assert film.n_frames == 4
            assert film.size == truth.size
            assert (np.asarray(film.convert("RGB")) != np.asarray(truth.convert("RGB"))).any()

    def test_a_recording_for_rerun(self, config, tmp_path):
        rr = pytest.importorskip("rerun")
        assert self.render(config, "--scene", "scene-0103", "--out", tmp_path / "s.rrd") == 0
        table = rr.dataframe.load_recording(tmp_path / "s.rrd")
        columns = str(table.schema().component_columns())
        for entity in ("world/rig/CAM_FRONT", "world/rig/truth", "world/rig/truth/trails", "world/path"):
            assert entity in columns
        view = table.view(index="time", contents={"/world/path": ["LineStrip3D"]})
        assert view.select().read_all().num_rows == 4

    def test_rerun_is_asked_for_where_it_is_missing(self, config, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "rerun", None)
        assert self.render(config, "--scene", "scene-0103", "--out", tmp_path / "s.rrd") == 1
        assert "pip install 'bevdet-core[viz]'" in capsys.readouterr().err
        assert not list(tmp_path.glob("*.rrd"))

    def test_a_rerun_that_does_not_work_is_told(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "rerun", ModuleType("rerun"))  # an empty folder of this name is enough
        with pytest.raises(ImportError, match=r"what is installed under its name is another: pip .*bevdet-core\[viz\]"):
            write_recording([], tmp_path / "s.rrd")
        monkeypatch.delitem(sys.modules, "rerun")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "rerun.py").write_text("raise ImportError('pyarrow is too old')")
        with pytest.raises(ImportError, match=r"rerun-sdk, which does not load here: pyarrow is too old; pip install"):
            write_recording([], tmp_path / "s.rrd")
        assert not list(tmp_path.glob("*.rrd"))

    def test_plain_images_make_no_scene(self, tmp_path, capsys):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}]
        tables = {"images": images, "categories": [{"id": 1, "name": "car"}], "annotations": []}
        (tmp_path / "val.json").write_text(json.dumps(tables))
        settings = {"model": {"name": "detr"}, "data": {"name": "coco", "root": str(tmp_path), "classes": ["car"]}}
        settings["data"] |= {"val_annotations": "val.json", "val_images": "."}
        (tmp_path / "coco.yaml").write_text(json.dumps(settings))
        assert self.render(tmp_path / "coco.yaml", "--scene", "scene-0103", "--out", tmp_path / "s.gif") == 1
        assert "scene 'scene-0103': plain images do not make scenes; --samples draws" in capsys.readouterr().err

    def test_what_is_no_scene_of_the_split(self, config, tmp_path, capsys):
        for words, told in (
            (("--scene", "scene-0104"), "no scene 'scene-0104' in split 'mini_val'; nearest: scene-0103"),
            (("--scene", "scene-0103", "--out", tmp_path / "s.avi"), "one of .mp4, .gif, .rrd"),
            (("--scene", "scene-0103", "--width", "3"), "width must lie between 160 and 16384 pixels, got 3"),
        ):
            assert self.render(config, *words) == 1
            assert told in capsys.readouterr().err
