"""The same page in a notebook: an anywidget whose questions go to the kernel, and whose address is a trait."""

from typing import Any

import anywidget
import traitlets

from hooks.errors import RopescopeError
from interp.explorer.answers import Answer
from interp.explorer.lanes import AT_ONCE, Lanes
from interp.explorer.page import joined, page_file
from interp.explorer.questions import Explorer


class ExplorerWidget(anywidget.AnyWidget):
    """The explorer as a widget.

    Attributes:
        view: the address of what is shown, which a reader's moves change and which may be set:
            ``widget.view = "h=5.2&q=100"``.
        explorer: what answers; ``widget.ask({"kind": "tile", …})`` gives the arrays that the page draws.
    """

    _esm = joined()
    _css = page_file("style.css")
    view = traitlets.Unicode("").tag(sync=True)

    def __init__(self, explorer: Explorer, view: str = "") -> None:
        super().__init__(view=view)
        self.explorer = explorer
        self._waiting: set[str] = set()
        self._lanes = Lanes()
        self.on_msg(self._asked)

    def ask(self, question: dict[str, Any]) -> Answer:
        """Answer a question as the page asks it; see `Explorer.ask`."""
        return self.explorer.ask(question)

    def close(self) -> None:
        """Stop what is being computed, and let the widget go."""
        self.explorer.atlas.work.cancel()
        self._lanes.close()
        super().close()

    def _asked(self, _: Any, message: Any, __: Any) -> None:
        """A message of the page: a question, or that one is no longer waited for."""
        if "drop" in message:
            self._waiting.discard(str(message["drop"]))
            return
        asked = message.get("ask")
        self._waiting.add(str(message.get("id")))
        if isinstance(asked, dict) and asked.get("kind") in AT_ONCE:
            self._answer(message.get("id"), asked)
        else:
            self._lanes.submit(asked, self._answer, message.get("id"), asked)

    def _answer(self, number: Any, asked: Any) -> None:
        """Send the answer to one question, or what is wrong with it."""
        if str(number) not in self._waiting:
            return
        self._waiting.discard(str(number))
        try:
            self.send({"id": number}, [self.explorer.ask(asked).pack()])
        except RopescopeError as error:
            self.send({"id": number, "error": str(error), "name": type(error).__name__})
        except MemoryError:
            self.send({"id": number, "error": "out of memory: ask for less", "name": "MemoryError"})
