"""The program in a response, which instruction-tuned models write as Markdown: `program_in`."""

import re

# A line that opens or closes a fenced block (CommonMark 0.31, section 4.5): its indent, its fence, what stands behind it.
_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})([^`\n]*)$", re.MULTILINE)
_DEFINES = re.compile(r"^(?:def[ \t]+solution\b|solution[ \t]*[:=])", re.MULTILINE)
_EMPTY_HEAD = re.compile(r"\s*def solution\(\):[ \t]*\n(?:[ \t]*\n)*(?=\S)")  # the prompt's, where the model began anew
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)


def program_in(response: str) -> str:
    """What is to be run of a response: the last fenced block that defines `solution`, without fences all of it.

    A block ends at its fence, at the next fence that names a language, or with the text. If none defines `solution` but the text before the
    first fence does, as where the prompt has opened the block, it is that text. A signature without a body before a whole program goes. Line
    ends become "\\n"; where spaces indent too, a tab in an indent is as many as the least of them; a byte order mark goes.
    Nothing is compiled or run.
    """
    text = response.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    fences = list(_FENCE.finditer(text))
    if fences:
        defining = [block for block in [text[: fences[0].start()], *_blocks(text, fences)] if _DEFINES.search(block)]
        # Before the first fence may stand no more than the signature that the prompt has given.
        text = next((block for block in reversed(defining) if not _EMPTY_HEAD.fullmatch(block + "x")), text)
    head = _EMPTY_HEAD.match(text)
    if head and _DEFINES.search(text, head.end()):
        text = text[head.end() :]
    indents = set(_INDENT.findall(text))
    spaces = min((len(indent) for indent in indents if "\t" not in indent), default=None)
    return _INDENT.sub(lambda indent: indent[0].expandtabs(spaces), text) if spaces else text


def _blocks(text: str, fences: list[re.Match]) -> list[str]:
    """What the fences enclose, in their order, without the indent of the fence."""
    blocks, opening = [], None
    for fence in [*fences, None]:
        if opening and fence and not fence[3].strip() and not fence[2].startswith(opening[2]):
            continue  # a shorter fence, or one of the other kind, is part of the block
        if opening:
            block = text[opening.end() + 1 : fence.start() if fence else len(text)]
            blocks.append(re.sub(rf"^ {{0,{len(opening[1])}}}", "", block, flags=re.MULTILINE))
        opening = fence if fence and (fence[3].strip() or not opening) else None
    return blocks
