"""`TemplateTexts` renders chats by the chat template, and plain chats without running it again for each.

Most templates only print the contents of messages: what they write around them depends on the roles alone. Such a
template runs once for each sequence of roles, and its text is then filled with contents. `prints_contents` reads in the
template's syntax tree whether it is one; any other runs for each chat.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from shiqrun.types import Message

Marked = tuple[str, list[tuple[int, int]]]
"""A text, and (start, end) of the characters that the template marks as generated."""
MARKS = ("\ue000{}\ue001", "\ue000{}\ue001\ue001")
"""Stand for the content of a message of that number; of two lengths, which must lead to the same shape."""
PLAIN_KEYS = {"role", "content"}
LOOP = ("first", "last", "index", "index0", "revindex", "revindex0", "length")
CHANGING = ("strftime_now", "lipsum", "random", "\ue000")
"""A template that holds one of these is run for each chat."""
ESCAPING = ("safe", "escape", "e", "forceescape", "xmlattr", "urlize")
"""Filters behind which a text that is joined may be escaped."""
REFUSED = (
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block, nodes.Extends, nodes.Include,
    nodes.Import, nodes.FromImport, nodes.EvalContextModifier,
)  # fmt: skip
"""What takes a printed text up again, has it elsewhere or escapes it."""
LARGEST_MEMORY = 256


class Shape(NamedTuple):
    """A `Shape` is the text of chats of the same roles: their contents stand between its pieces.

    Attributes:
        pieces: the template's own texts, one more than contents.
        contents: number of the message of each content.
        marks: (start, end) of what is marked as generated; each as number of contents before, characters of the
            template before.
    """

    pieces: list[str]
    contents: list[int]
    marks: list[tuple[tuple[int, int], tuple[int, int]]]

    def filled(self, chat: Sequence[Message]) -> Marked:
        """Return the text of a chat, and where it is marked."""
        texts = [chat[number]["content"] for number in self.contents]
        parts = [self.pieces[0]]
        for text, piece in zip(texts, self.pieces[1:], strict=True):
            parts += text, piece
        if not self.marks:
            return "".join(parts), []
        lengths = [0]
        for text in texts:
            lengths.append(lengths[-1] + len(text))
        return "".join(parts), [(own + lengths[n], behind + lengths[m]) for (n, own), (m, behind) in self.marks]


class TemplateTexts:
    """A `TemplateTexts` object renders chats without tools as the chat template of a tokenizer does.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = str(tokenizer.get_chat_template())
        self.words = dict(tokenizer.special_tokens_map)
        self._prints = prints_contents(self.template)
        self._shapes: dict[tuple[Any, ...], Shape | None] = {}

    def texts(self, chats: Sequence[Sequence[Message]], *, head: bool, marks: bool) -> list[Marked]:
        """Return the text of each chat.

        Args:
            chats: messages as the template gets them.
            head: the generation prompt stands at the end.
            marks: whether the marks of generation are asked for.
        """
        shapes = [self._shape(chat, head, marks) for chat in chats]
        others = [chat for chat, shape in zip(chats, shapes, strict=True) if shape is None]
        rendered = iter(self._rendered(others, head, marks))
        return [
            next(rendered) if shape is None else shape.filled(chat) for chat, shape in zip(chats, shapes, strict=True)
        ]

    def _shape(self, chat: Sequence[Message], head: bool, marks: bool) -> Shape | None:
        """Return the shape of a chat; None where it has none."""
        if not self._prints or not all(m.keys() == PLAIN_KEYS and type(m["content"]) is str for m in chat):
            return None
        roles = [m["role"] for m in chat]
        key = (head, marks, *roles)
        if key not in self._shapes:
            if len(self._shapes) >= LARGEST_MEMORY:
                self._shapes.clear()
            made = [self._made(roles, head, marks, mark) for mark in MARKS]
            self._shapes[key] = made[0] if made[0] == made[1] else None
        return self._shapes[key]

    def _made(self, roles: Sequence[str], head: bool, marks: bool, mark: str) -> Shape | None:
        """Return the shape of the chats with some roles; None where the template refuses them."""
        numbered: list[Message] = [{"role": role, "content": mark.format(n)} for n, role in enumerate(roles)]
        try:
            text, spans = self._rendered([numbered], head, marks)[0]
        except Exception:
            return None
        pieces = re.split(mark.format("([0-9]+)"), text)
        contents, own = [int(number) for number in pieces[1::2]], pieces[::2]
        ends = [match.span() for match in re.finditer(mark.format("[0-9]+"), text)]

        def place(at: int) -> tuple[int, int]:
            before = [end - start for start, end in ends if end <= at]
            return len(before), at - sum(before)

        return Shape(own, contents, [(place(start), place(end)) for start, end in spans])

    def _rendered(self, chats: Sequence[Sequence[Message]], head: bool, marks: bool) -> list[Marked]:
        """Return what the template writes for each chat."""
        options: dict[str, Any] = {"add_generation_prompt": head, "return_assistant_tokens_mask": marks, **self.words}
        given = [[{k: v for k, v in m.items() if v is not None} for m in chat] for chat in chats]
        made: Any = render_jinja_template(given, chat_template=self.template, **options)
        return [*zip(made[0], made[1] if marks else [[] for _ in given], strict=True)]


@lru_cache(maxsize=64)
def prints_contents(template: str) -> bool:
    """Return whether a chat template does nothing with the contents of messages but print them.

    Every use of `messages`, and of the variable of a loop over them, must be one of these: such a loop, a test of
    whether there are any, their number, a key of a message that is not its content, or its content as a part of what is
    printed. Then no content can reach anything else.
    """
    if any(word in template for word in CHANGING):
        return False
    bare = re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{%\1 if 1 \2%}{% endif %}", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(bare)
    except jinja2.TemplateError:
        return False
    loops = [*tree.find_all(nodes.For)]
    if any(tree.find_all(REFUSED)) or any(loop.recursive for loop in loops):
        return False
    if any(given.name in ESCAPING for given in tree.find_all(nodes.Filter)):
        return False
    carriers = {"messages"}
    for loop in (loop for loop in loops if _is_list(loop.iter)):
        if not isinstance(loop.target, nodes.Name):
            return False
        carriers.add(loop.target.name)
    return all(_is_allowed(chain, carriers) for chain in _chains(tree, ()) if isinstance(chain[-1], nodes.Name))


Chain = tuple[nodes.Node, ...]
"""A node of a syntax tree behind all that it lies in."""


def _chains(node: nodes.Node, above: Chain) -> Iterator[Chain]:
    yield (*above, node)
    for child in node.iter_child_nodes():
        yield from _chains(child, (*above, node))


def _is_list(node: nodes.Node) -> bool:
    """Return whether an expression is `messages` or a slice of it."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node = node.node
    return isinstance(node, nodes.Name) and node.name == "messages"


def _is_allowed(chain: Chain, carriers: set[str]) -> bool:
    """Return whether a name, the last of a chain of nodes, is no message, or one whose content is but printed."""
    *above, name = chain
    assert isinstance(name, nodes.Name)
    if name.name == "loop":
        return isinstance(above[-1], nodes.Getattr) and above[-1].attr in LOOP
    if name.name not in carriers or name.ctx == "store":
        return name.name != "self"
    message: nodes.Node = name
    if name.name == "messages":
        got = above[-1]
        if not (isinstance(got, nodes.Getitem) and got.node is name):
            return _is_list_used(got, name)
        message = above.pop()
        if isinstance(got.arg, nodes.Slice):
            return isinstance(above[-1], nodes.For) and above[-1].iter is got
    return _only_printed(above, message)


def _is_list_used(outer: nodes.Node, messages: nodes.Node) -> bool:
    """Return whether `messages` is looped over or counted, or decides by its emptiness which branch is taken."""
    if isinstance(outer, nodes.For):
        return outer.iter is messages
    if isinstance(outer, nodes.Filter):
        return outer.node is messages and outer.name in ("length", "count")
    return isinstance(outer, nodes.If | nodes.CondExpr) and outer.test is messages


def _only_printed(above: list[nodes.Node], message: nodes.Node) -> bool:
    """Return whether of a message a key is used that is not its content, or its content is printed."""
    got = above.pop()
    if isinstance(got, nodes.Getattr) and got.node is message:
        key = got.attr
    elif isinstance(got, nodes.Getitem) and got.node is message and isinstance(got.arg, nodes.Const):
        key = got.arg.value
    else:
        return False
    if key in ("role", "tool_calls", "name", "tools", "tool_call_id", "reasoning_content", "thinking"):
        return True
    node: nodes.Node = got
    while key == "content" and above:
        outer = above.pop()
        if isinstance(outer, nodes.Output):
            return True
        chosen = isinstance(outer, nodes.CondExpr) and outer.test is not node
        if not (chosen or isinstance(outer, nodes.Add | nodes.Concat)):
            return False
        node = outer
    return False
