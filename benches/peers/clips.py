"""Which files of a folder are clips, the same for every program here."""

from pathlib import Path

EXTENSIONS = {".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm"}


def clips_in(folder: Path) -> list[Path]:
    """All clips below a folder, in one order everywhere."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
