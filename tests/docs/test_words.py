"""Retired words are in no file but CHANGELOG.md: each thing has one name, the field's."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = r"""
pictures?; twins?; keeper; view banks?; banks?; second looks?; looks? (twice|once); doubt(ful)?;
ladders?; exhibits?; likeliest; from elsewhere; held[-_ ]out; cannot be had; anew; gravest;
carr(y|ied|ies) on; telephones?; gr[e]y\w*; for want of; at a time; in doubt; flatters?; lends?;
the folds say; said probability; usable already; recipe; judge[ds]?; told; strangers?; sketch\w*;
unlike the training (images?|set)
"""
"""Retired in pages, messages and docstrings, in any case; separated by semicolons."""
NAMES = r"""
sole_writer; SoleWriter; _?(MOST|LEAST|FEWEST|LARGEST)_\w+; study\.db; n_unlike; external_twins;
gpu_shares; n_other_side; packed_size; accuracy_before; takes_second_look; fresh_backbone;
looking_twice; viewbank; machinefile; pack_pictures; BankPlan; PictureInputs; goes_on; _go_on;
LetsWorkersStart; RebuiltASHA; _NeverStops; _AsManyAs; bring_home; last_words; in_good_order;
carrying_on; check_place; straddling; SecondLooks; LookedTwice; Climbed; doubtful_first; heated
"""
"""Retired in code and files, as they were written."""
WORD, NAME = ("|".join(re.split(r";\s*|\n", text.strip())) for text in (WORDS, NAMES))
PATTERN = re.compile(rf"(?<![a-zA-Z_])((?i:{WORD})|{NAME})(?![a-zA-Z_])")

EXCEPTED = {"CHANGELOG.md", "tests/docs/test_words.py"}


def test_no_retired_word_is_in_the_tree() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if name in EXCEPTED or path.suffix in (".png", ".csv") or not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            words = {match[1].lower() for match in PATTERN.finditer(line)}
            if words:
                found.append(f"{name}:{number}: {', '.join(sorted(words))}")
    assert not found, "\n".join(found)
