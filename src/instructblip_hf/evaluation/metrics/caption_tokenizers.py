"""Words of captions: COCO's own tokenizer, which needs Java, and one close to it, which does not.

COCO's evaluation tokenises with Stanford CoreNLP 3.4.1 (``PTBTokenizer -preserveLines -lowerCase``) and drops
punctuation. Published CIDEr, BLEU and ROUGE-L are those of its tokens. The jar comes with pycocoevalcap (the
``captions`` extra). Where it or Java is missing, NLTK's Penn Treebank tokenizer stands in (the ``eval`` extra), and
results say so: docs/metrics.md has how far the two are apart.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


TOKENIZERS = ("auto", "ptb-java", "treebank")

_JAR = "stanford-corenlp-3.4.1.jar"
_JAVA_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
# What COCO drops of the tokens.
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# All that ends a line for Java's tokenizer: its output is matched to captions by line.
_LINE_ENDS = re.compile("[\r\n\v\f\x85\u2028\u2029]")
# NLTK parts the period from the last word only, CoreNLP from the last of every sentence.
_SENTENCE_END = re.compile(r"(?<=[a-z]{3})(?<!etc)\.(?=[\s\"')\]])")

logger = logging.getLogger(__name__)


def tokenize_captions(captions: Sequence[str], tokenizer: str = "auto") -> tuple[list[list[str]], str]:
    """The words of each caption, in lower case and without punctuation, and the name of the tokenizer that ran.

    Args:
        captions (`Sequence[str]`): Raw captions.
        tokenizer (`str`, *optional*, defaults to `"auto"`): `"ptb-java"` is COCO's own, `"treebank"` NLTK's, `"auto"`
            the first where Java and pycocoevalcap are installed, else the second with a warning in the log.

    Raises:
        ImportError: If the tokenizer's package is not installed.
        RuntimeError: If Java is asked for and missing, or fails.
        ValueError: If ``tokenizer`` is another.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer is {tokenizer!r}; allowed are {', '.join(TOKENIZERS)}")
    name = tokenizer
    if name == "auto":
        name = "ptb-java" if shutil.which("java") and _jar() else "treebank"
        if name == "treebank":
            logger.warning(
                "Java or pycocoevalcap is missing: captions are tokenised by NLTK, and their scores differ from COCO's "
                "in the third digit. Results say tokenizer: treebank."
            )
    lines = [_LINE_ENDS.sub(" ", caption) for caption in captions]
    return (_java_words(lines) if name == "ptb-java" else _treebank_words(lines)), name


def _jar() -> Path | None:
    """Where pycocoevalcap keeps CoreNLP, if it is installed. Does not import it."""
    found = importlib.util.find_spec("pycocoevalcap")
    for folder in (found.submodule_search_locations or []) if found else []:
        jar = Path(folder) / "tokenizer" / _JAR
        if jar.is_file():
            return jar
    return None


def _java_words(lines: Sequence[str]) -> list[list[str]]:
    jar, java = _jar(), shutil.which("java")
    if jar is None:
        raise ImportError(
            "tokenizer='ptb-java' takes CoreNLP from pycocoevalcap, which is not installed: "
            "pip install 'instructblip-hf[captions]'"
        )
    if java is None:
        raise RuntimeError("tokenizer='ptb-java' runs Java, and there is no java on the PATH; 'treebank' needs none")
    command = [java, "-cp", str(jar), _JAVA_CLASS, "-preserveLines", "-lowerCase"]
    run = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {run.returncode}: {run.stderr.decode()[-500:]}")
    written = run.stdout.decode().split("\n")
    # Blank captions at the end may leave no line; more than that would shift words to other captions.
    if any(line.strip() for line in written[len(lines) :]) or any(line.strip() for line in lines[len(written) :]):
        raise RuntimeError(f"CoreNLP returned {len(written)} lines for {len(lines)} captions")
    written += [""] * (len(lines) - len(written))
    # Only at spaces: "1 1/2" is one word to CoreNLP, with a no-break space inside.
    return [
        [word for word in line.rstrip().split(" ") if word and word not in _PUNCTUATION]
        for line in written[: len(lines)]
    ]


def _treebank_words(lines: Sequence[str]) -> list[list[str]]:
    try:
        from nltk.tokenize import TreebankWordTokenizer
    except ImportError as error:
        raise ImportError(
            "tokenizer='treebank' is NLTK's, which is not installed: pip install 'instructblip-hf[eval]'"
        ) from error
    tokenizer = TreebankWordTokenizer()
    words = []
    for line in lines:
        tokens = (
            token.lower() for token in tokenizer.tokenize(_SENTENCE_END.sub(" .", line), convert_parentheses=True)
        )
        words.append([token for token in tokens if token not in _PUNCTUATION])
    return words


__all__ = ["TOKENIZERS", "tokenize_captions"]
