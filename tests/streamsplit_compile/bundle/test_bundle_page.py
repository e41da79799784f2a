"""The page about a bundle: well-formed, complete, the same every time."""

import re
from html.parser import HTMLParser

from streamsplit_compile.bundle.bundle_page import render_report
from streamsplit_compile.bundle.compiler import report_path


class Balanced(HTMLParser):
    """Fails on a tag that is closed without having been opened."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag == "rect"

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag


def test_it_names_every_cut_and_target_and_is_well_formed(small_bundle):
    page = render_report(small_bundle).decode()
    parser = Balanced()
    parser.feed(page)

    assert parser.open == []
    for cut in small_bundle.manifest.info.cuts:
        assert f"cut {cut.index}: {cut.name}" in page
    for target in small_bundle.manifest.info.targets:
        assert f"<h2>{target}</h2>" in page
    assert not re.search(r'(src|href)="', page)
    assert page.count("<td>onnx-fp32</td>") == len(small_bundle.manifest.info.cuts)


def test_the_same_bundle_gives_the_same_bytes_and_lies_beside_it(small_bundle):
    assert render_report(small_bundle) == report_path(small_bundle.path).read_bytes()
