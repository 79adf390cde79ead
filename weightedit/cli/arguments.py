"""What the words on the command line mean: the parser, sizes and conventions, editors and outputs by path.

Quiet: printing and the commands themselves are in cli.py. Nothing heavy is imported, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from weightedit import __version__
from weightedit.cli.conventions import add_convention, add_rename, convention_words
from weightedit.errors import FileFormatError, WeightEditError

SHIPPED_EDITOR = "varied-multi"

_DESCRIPTION = """\
Edit images by changing nothing but the weights of the networks that store them.

An INR (implicit neural representation) is a small network, here a SIREN, that maps a pixel's
coordinates to its value: one network is one image. An editor is a metanetwork: it reads the weights
of an INR and proposes new ones.

  weightedit demo                                        see it all at work, without a download
  weightedit fit photos/*.png --size 28 -o in.safetensors    images -> INRs
  weightedit edit in.safetensors -o out.safetensors      INRs -> edited INRs
  weightedit render out.safetensors -o sheet.png         INRs -> images, at any resolution
  weightedit convert net.pth --convention siren -o a.safetensors    INRs of other codes -> ours, and back
  weightedit info out.safetensors                        what a file, a weight set or a checkpoint is
  weightedit check in.safetensors                        is it read right, and is the editor sound?
"""
_EXITS = "Exit code: 0 when all went well, 1 when {one}, 2 on an error, which is told in one line."
_FOREIGN = "Of INRs that are not in a file of weightedit (.pth, .ckpt, ...), as they were fitted; ours state theirs."
_EDITOR = "name of a shipped editor (varied-multi, ...), folder of one, or owner/name on the Hugging Face hub."


_KEYWORD = re.compile(r"\b(?P<name>[a-z_]+)=(?P<value>\w*\([^)]*\)|[^\s,;:]*[^\s,;:.])")
OPTIONS = {"widths": "hidden", "factor": "widen"}
"""Keyword of the library -> option of the command line, where they differ."""


def size_argument(text: str) -> tuple[int, int]:
    """ "28" -> (28, 28) and "28x32" -> (28, 32): height and width in pixels; argparse's error for anything else."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected 28, or 28x32 for height x width")
    return int(parts[0]), int(parts[-1])


def count_argument(text: str) -> int:
    """A whole number of at least 1; argparse's error for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least 1")
    return int(text)


def in_own_words(message: str, options: argparse.Namespace) -> str:
    """A message of the library as the command line says it: `name=value` is `--name value` where there is that option.

    Args:
        message: of an error, in the library's terms.
        options: of the command that ran.
    """
    left: list[str] = []

    def told(found: re.Match[str]) -> str:
        name, value = OPTIONS.get(found["name"], found["name"]), found["value"]
        value = convention_words(value) if name == "convention" else value
        if name not in vars(options):
            left.extend([found["name"]] if message[: found.start()].endswith("pass ") else [])
            return found[0]
        words = re.findall(r"[\w.+-]+", value) if value.startswith("(") else [value]
        words = ["28x32 (height x width)"] if words == ["height", "width"] else words
        return f"--{name.replace('_', '-')} {'x'.join(words) if name == 'size' else ' '.join(words)}"

    message = message.replace(" (weightedit.inr.convention)", "")
    said = _KEYWORD.sub(told, message)
    return f"{said} ({', '.join(dict.fromkeys(left))}: in Python alone.)" if left else said


def check_words(options: argparse.Namespace) -> None:
    """Raise WeightEditError on an option or argument that came empty, as `--editor "$UNSET"` does."""
    for name, value in vars(options).items():
        if any(isinstance(word, str) and not word.strip() for word in (value if isinstance(value, list) else [value])):
            raise WeightEditError(f"got an empty {name!r}; expected a value: give one, or leave it out.")


def check_output(path: str | Path, suffix: str) -> Path:
    """The path, once it is certain that a file can be put there; asked before the work, not after it.

    Raises:
        FileFormatError: another ending, a folder of that name, or a folder around it that is missing or not writable.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise FileFormatError(f"{path} ends in {path.suffix!r}; it is written as {suffix}: name it so.")
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder; expected the name of a {suffix} file: choose another name.")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be written ({error.strerror}); expected an existing, writable folder around it: choose "
            "another place, or create it."
        ) from error
    return path


def chosen(indices: list[int] | None, count: int, most: int) -> list[int]:
    """The INRs to treat: those asked for, or the first `most`. Raises WeightEditError on a number out of range."""
    if indices is None:
        return list(range(min(count, most)))
    wrong = [index for index in indices if not 0 <= index < count]
    if wrong:
        raise WeightEditError(
            f"INR {wrong[0]} was asked for, but there are {count}; expected 0 to {count - 1}: correct --index."
        )
    return indices


def build_parser() -> argparse.ArgumentParser:
    """The parser of `weightedit`; the result has `command` and that command's options."""
    parser = argparse.ArgumentParser("weightedit", description=_DESCRIPTION, formatter_class=_Raw)
    parser.add_argument("--version", action="version", version=f"weightedit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for add in (_add_demo, _add_fit, _add_edit, _add_render, _add_convert, _add_info, _add_check):
        add(commands)
    return parser


_Raw = argparse.RawDescriptionHelpFormatter


def _command(commands, name: str, summary: str, text: str, example: str) -> argparse.ArgumentParser:
    description, epilog = f"{summary[0].upper()}{summary[1:]}.\n\n{text}", f"example:\n  {example}"
    return commands.add_parser(name, help=summary, description=description, epilog=epilog, formatter_class=_Raw)


def _add_inrs(parser: argparse.ArgumentParser, *, size: bool = True) -> None:
    parser.add_argument("inrs", metavar="FILE", help="INRs: a .safetensors file, a foreign file, or a folder of them")
    add_convention(parser, _FOREIGN)
    add_rename(parser)
    if size:
        text = "size of the fitted images, such as 28 or 28x32 (height x width); for foreign files only"
        parser.add_argument("--size", type=size_argument, metavar="PIXELS", help=text)


def _add_demo(commands) -> None:
    text = """\
scikit-learn's digits (8x8 pixels) are enlarged to 28x28 and brought near to MNIST's, each is fitted by
a SIREN of its own, the editor changes the weights, and one sheet shows: the image, its INR, the edited
INR, the image that was wanted, and how the weights changed. The table gives mean squared errors:
"do nothing" before the edit, "edited" after it, "floor" when the same INR is fitted to the wanted image."""
    parser = _command(commands, "demo", "edit real handwritten digits, without a download", text, "weightedit demo")
    parser.add_argument("--editor", metavar="EDITOR", help=f"{_EDITOR} Default: {SHIPPED_EDITOR}")
    parser.add_argument("--operation", metavar="NAME", help="of an editor that knows several (default: its first)")
    parser.add_argument("-o", "--output", metavar="PNG", default="demo.png", help="the sheet (default: demo.png)")
    parser.add_argument("--count", type=count_argument, default=8, help="how many digits (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the SIRENs' initializations (default: 0)")


def _add_fit(commands) -> None:
    text = f"""\
Every image becomes one SIREN, all from independent random initializations. IMAGES are picture files of
one size (or any size, with --size), or one data set: a folder, a parquet file, or a name on the Hugging
Face hub, with --split and --limit. All INRs are written; an image that misses the target PSNR is named,
with what it reached, and left out only with --drop-missed. The default target is 40 dB up to 40 x 40
pixels, 35 up to 96 x 96, 30 beyond: what a photograph that is not full of detail reaches within a minute
of one core at 256 x 256. Memory hardly grows with the picture's size.

Sounds (.wav, PCM) and other samples (.npz with arrays coordinates [P, inputs] in [-1, 1] and values
[P, channels], any real numbers; 1 to 3 inputs) become INRs likewise. Their target is 50 dB, of the values'
range over the error; the frequency of the first layer follows from the number of samples along an axis:
half of it up to 30, an eighth of it beyond, from 8,000 on by its root (--convention plain --omega 3000
30 states others). So do clips, animated GIF, WEBP and PNG, whose third input is the time, to 30 dB; --size
and --channels convert them.

{_EXITS.format(one="images were left out")}"""
    example = "weightedit fit photo.png --size 256 -o photo.safetensors\n"
    example += "  weightedit fit photos/*.png --size 28 --channels 1 -o in.safetensors\n"
    example += "  weightedit fit ylecun/mnist --split test --limit 100 -o in.safetensors\n"
    example += "  weightedit fit sound.wav -o sound.safetensors\n"
    example += "  weightedit fit clip.gif --size 32 -o clip.safetensors"
    parser = _command(commands, "fit", "turn images into INRs", text, example)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="picture files, sounds, clips, samples, or one data set"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the INRs go, .safetensors")
    parser.add_argument("--split", help="of a data set that has several: train, test, ...")
    parser.add_argument("--limit", type=count_argument, help="only the first so many images")
    parser.add_argument("--size", type=size_argument, metavar="PIXELS", help="resize first: 28, or height x width")
    columns = "names of the image column, and of the label column, of a data set where they are in doubt"
    parser.add_argument("--columns", nargs="+", metavar="NAME", help=columns)
    parser.add_argument("--channels", type=int, choices=(1, 3), help="convert first: 1 is gray, 3 is RGB")
    hidden = "widths of the hidden layers (default: by size: 32 32 up to 40 pixels, 64 64 64 at 64, 128 128 128 at 256)"
    parser.add_argument("--hidden", type=count_argument, nargs="+", metavar="N", help=hidden)
    init = "named initialization (default: siren); dwsnets reaches less"
    parser.add_argument("--init", choices=("siren", "dwsnets"), default="siren", help=init)
    method = (
        "smooth solves the last layer at every step; fast does so at a higher rate, is rough between the pixels and is "
    )
    method += "what the shipped editors learned from; adam is what published INRs were fitted by (default: smooth)"
    parser.add_argument("--method", choices=("smooth", "fast", "adam"), default="smooth", help=method)
    rate = (
        "of the steps (default: smooth 0.004, less for deeper or wider networks; adam 0.0005); less takes more steps, "
    )
    rate += "and is smoother between the pixels"
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help=rate)
    target = "stop here (default: by size 40, 35 or 30, see above; after --init dwsnets 18, by --method adam 25)"
    parser.add_argument("--target-psnr", type=float, metavar="DB", help=target)
    most = "give up after so many (default: 200, beyond 40 x 40 pixels 400; adam 1000)"
    parser.add_argument("--max-steps", type=count_argument, metavar="N", help=most)
    parser.add_argument("--seed", type=int, default=0, help="of the initializations (default: 0)")
    parser.add_argument("--drop-missed", action="store_true", help="leave out images that missed the target")
    add_convention(parser, "Of the INRs that are made (default: dwsnets).")


def _add_edit(commands) -> None:
    text = """\
Only weights are read and written. Two ways, which may follow each other:
  an editor       a metanetwork changes the weights in one shot, and never looks at the image; or a predictive
                  editor foresees the picture of the edited INR, and takes a few learned steps to it
  --steps N       each step brings the INR's rendering nearer to the operation applied to its rendering
                  before the edit. With --operation instead of --editor there is nothing but these steps,
                  so any function from images to images will do: none of your own needs training.
The preview shows the first INRs before and after, what the operation itself makes of the first rendering,
and how the weights of one layer changed."""
    example = f"weightedit edit in.safetensors --editor {SHIPPED_EDITOR} -o out.safetensors --preview sheet.png\n"
    example += "  weightedit edit in.safetensors --operation erode -o out.safetensors\n"
    example += "  weightedit edit in.safetensors --operation mine.py:posterize --steps 20 -o out.safetensors\n"
    example += (
        "  weightedit edit in.safetensors --operation blur --operation invert --mask face.png -o out.safetensors\n"
    )
    example += "  weightedit edit out.safetensors --undo -o out.safetensors"
    parser = _command(commands, "edit", "edit INRs by changing their weights", text, example)
    _add_inrs(parser)
    parser.add_argument("--editor", metavar="EDITOR", help=f"{_EDITOR} Default: {SHIPPED_EDITOR}")
    operation = "of an editor that knows several; or, without --editor, by steps alone: a name (dilate, erode, "
    operation += "contrast, blur, invert, ...), or FILE.py:FUNCTION, from images [N, C, H, W] in [0, 1] to the same; "
    operation += (
        "given several times, they are done one after another; of INRs of samples, FILE.py:FUNCTION from values "
    )
    operation += "[N, P, C] to the same"
    parser.add_argument("--operation", metavar="NAME", action="append", help=operation)
    target = "pictures to step to instead of an operation, one for all INRs or one for each, resized to theirs; or "
    target += "other INRs; or .wav, clips or .npz, of INRs of samples; --strength 0.5 is halfway there"
    parser.add_argument("--target", metavar="PICTURE", nargs="+", help=target)
    mask = "a picture that is white where the edit is wanted and black where the INR is to stay; with steps alone"
    parser.add_argument("--mask", metavar="PICTURE", help=mask)
    steps = "steps towards the operation of the rendering (default: 0 after a one-shot editor, a predictive one's own "
    steps += "number, 10 with --operation)"
    parser.add_argument("--steps", "--refine", type=int, metavar="N", help=steps)
    strength = "how much of the operation: 0 leaves the INR as it is, 0.5 is half the way (default: 1)"
    parser.add_argument("--strength", type=float, default=1.0, metavar="S", help=strength)
    widen = "hidden widths of the edited INRs, as a multiple of the given ones': room for more detail (default: 1)"
    parser.add_argument("--widen", type=count_argument, default=1, metavar="K", help=widen)
    rule = "that takes the steps: kfac, or a learned one as for --editor (default: the shipped refine-rule)"
    parser.add_argument("--rule", metavar="RULE", help=rule)
    raw = (
        "write what the editor makes of every INR; without it, an INR that the edit would bring further away from the "
    )
    raw += "operation of its rendering stays as it was, and is named"
    parser.add_argument("--raw", action="store_true", help=raw)
    undo = (
        "give back the weights before the last edit, to the bit; a file keeps those of its last 8 edits, at most 64 MB"
    )
    parser.add_argument("--undo", action="store_true", help=undo)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="edited INRs, .safetensors")
    _add_like(parser)
    parser.add_argument("--preview", metavar="PNG", help="also draw a sheet of the first 8")


def _add_render(commands) -> None:
    text = """\
One INR gives a plain picture, several a sheet of them, row by row, pixel by pixel. An INR is a function
of continuous coordinates, so any resolution will do. A .wav is the sound of one INR of 1 input; a .gif,
.webp or .apng the clip of one of 3; a .npz holds coordinates of a grid and the values there, of INRs of any kind."""
    example = "weightedit render in.safetensors -o sheet.png --size 56 --index 0 3 5\n"
    example += "  weightedit render sound.safetensors -o sound.wav\n"
    example += "  weightedit render clip.safetensors -o clip.webp --frames 64 --size 128"
    parser = _command(commands, "render", "draw the images that INRs store, or play their sounds", text, example)
    _add_inrs(parser, size=False)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .png, .wav, .gif, .webp, .apng or .npz"
    )
    size = "resolution to draw at: 56, or 48x64 (height x width); default: the size that was fitted"
    parser.add_argument("--size", type=size_argument, metavar="PIXELS", help=size)
    rate = "samples a second of a .wav (default: that of the sound that was fitted)"
    parser.add_argument("--rate", type=count_argument, metavar="HZ", help=rate)
    frames = "of a clip (default: as many as were fitted, of the whole time)"
    parser.add_argument("--frames", type=count_argument, metavar="N", help=frames)
    index = "numbers of the INRs, from 0 (default: the first 64)"
    parser.add_argument("--index", type=int, nargs="+", metavar="I", help=index)


def _add_like(parser: argparse.ArgumentParser) -> None:
    like = "write one INR back under the names and nesting of this file, the one that it was read from, all else in it "
    like += "as it is; the output ends as it does (.pth, .pt, .ckpt, .safetensors)"
    parser.add_argument("--like", metavar="FILE", help=like)


def _add_convert(commands) -> None:
    text = """\
INRs of other codes, a file or a folder of them, become one file of weightedit, which states the convention
that they were fitted under; or, with --like, an INR of weightedit becomes a file of the other code again."""
    example = "weightedit convert net.pth --convention siren-pytorch --size 64 -o in.safetensors\n"
    example += "  weightedit convert edited.safetensors --like net.pth -o edited.pth"
    parser = _command(commands, "convert", "write INRs of other codes as ours, and back", text, example)
    _add_inrs(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the INRs go")
    _add_like(parser)


def _add_info(commands) -> None:
    text = """\
FILE is an INR file, a weight set, a CNN zoo, or a checkpoint of any kind, shipped ones by name. Shown are kind,
count, widths, convention, provenance, PSNR and the symmetry of every layer; for a checkpoint what it is made
of, its size, and the test figures of its training."""
    parser = _command(commands, "info", "say what a file or folder is", text, f"weightedit info {SHIPPED_EDITOR}")
    _add_inrs(parser)


def _add_check(commands) -> None:
    text = f"""\
Four questions about YOUR networks, each answered "ok" or "FAILED" with the figure behind it:
  round trip     is every weight read, put on the neural graph, and given back, bit for bit?
  identity edit  does changing nothing change nothing, and is the canonical form the same picture?
  equivariance   does the metanetwork respect your network's symmetry (permuted neurons, flipped signs,
                 shifted phases)? Without --editor a freshly made GaugeGMN is asked.
  reading        is the convention the one it was fitted under? With --image the picture decides, and the
                 convention that fits it is named; without, "unsure" where the rendering may be a picture,
                 FAILED where it cannot. INRs of sounds and volumes are checked like those of pictures.

{_EXITS.format(one="a check failed")}"""
    example = f"weightedit check in.safetensors --editor {SHIPPED_EDITOR}\n"
    example += "  weightedit check net7.pth --convention dwsnets --size 28"
    parser = _command(commands, "check", "test your networks against the library's promises", text, example)
    _add_inrs(parser)
    parser.add_argument("--editor", metavar="EDITOR", help=_EDITOR)
    parser.add_argument("--limit", type=count_argument, default=16, metavar="N", help="use the first N (default: 16)")
    images = "the pictures, sounds or samples that the first INRs were fitted to, in order"
    parser.add_argument("--image", nargs="+", metavar="PICTURE", help=images)
