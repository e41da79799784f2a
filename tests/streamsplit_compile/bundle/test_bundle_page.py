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


def test_it_tells_what_bottlenecks_and_exits_there_are_and_how_near_they_come(calibrated_bundle, small_bundle):
    page = render_report(calibrated_bundle).decode()
    parser = Balanced()
    parser.feed(page)
    info = calibrated_bundle.manifest.info

    assert parser.open == []
    section = page[page.index("<h2>Exits</h2>") : page.index("<h2>Bytes for each window</h2>")]
    for early in info.exits:
        assert f"<td>{early.cut}</td>" in section
        assert f"onnx-fp32 {early.agreement['onnx-fp32'].cosine_median:.4f}" in section
    section = page[page.index("<h2>Bottlenecks</h2>") : page.index("<h2>Exits</h2>")]
    for bottleneck in info.bottlenecks:
        for one in bottleneck.widths:
            assert f"<td>{one.width}</td>" in section
            assert f">{bottleneck.cut}/{one.width}</text>" in page
    assert "its first answer takes" in page
    without = render_report(small_bundle).decode()
    assert not [word for word in ("<h2>Exits", "<h2>Bottlenecks", "+exit") if word in without]
