"""A reader of the report's page: what a browser would find in its HTML."""

import csv
import json
import re
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "wbr", "img", "link", "hr"}


class Reader(HTMLParser):
    """Element ids, links, JSON in scripts, text, and elements that were never closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.data, self.open, self.text, self.rows = [], [], {}, [], "", []
        self.fetched, self.items = [], []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.fetched += [given[name] for name in ("src", "srcset", "poster") if name in given]
        self.fetched += [given.get("href")] if tag == "link" else []
        self.open += [] if tag in VOID else [(tag, given.get("id"))]
        self.items += [""] if tag == "li" else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, text):
        if self.open and self.open[-1][0] == "script":
            if self.open[-1][1]:
                self.data[self.open[-1][1]] = json.loads(text)
        elif self.open and self.open[-1][0] != "style":
            self.text += text
            if any(tag == "li" for tag, _ in self.open):
                self.items[-1] += text
            if any(tag in ("td", "th") for tag, _ in self.open):
                self.rows[-1][-1] += text


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
